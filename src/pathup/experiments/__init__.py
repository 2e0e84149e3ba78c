"""The paper's tables and figures as runnable, resumable experiments."""
