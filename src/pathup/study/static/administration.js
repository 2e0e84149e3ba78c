/* The administrator's page: its rows are fetched anew now and then, while it is looked at. */
"use strict";

(() => {
  const EVERY_MS = 15000;
  const rows = document.getElementById("readers");

  async function renew() {
    if (document.hidden) { return; }
    const response = await fetch(location.href, { cache: "no-store" }).catch(() => null);
    if (!response || !response.ok) { return; } // the server rests; what is shown is the last that was known
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    rows.replaceChildren(...page.getElementById("readers").children);
  }

  setInterval(renew, EVERY_MS);
  document.addEventListener("visibilitychange", renew);
})();
