/* A reader's page: shows the image that comes next, sends the answer, and shows the one after when the answer is kept. */
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const stage = byId("image"), form = byId("answer"), next = byId("next"), back = byId("back"), trouble = byId("trouble");
  const NOT_LOADED = "The image could not be loaded. It is tried again every two seconds; check the connection.", AGAIN_MS = 2000;
  const mpp = Number(stage.dataset.mpp), base = `/r/${stage.dataset.link}`;
  let state = null;      // where the reader stands, by the server
  let shown = null;      // {round, place}: what is on the screen
  let since = 0;         // when it came
  let ready = false;     // whether its image is on the screen: what is not seen is not scored
  let busy = false;
  let again = 0;         // the next try to load an image
  let begun = false;     // whether the reader has seen that the practice is over

  const viewer = OpenSeadragon({
    element: stage, prefixUrl: "", showNavigationControl: false, animationTime: 0.3, blendTime: 0, maxZoomPixelRatio: 4, visibilityRatio: 0.5,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { dblTapToZoom: true }, keyboardNavEnabled: false,
    drawer: "canvas", smoothTileEdgesMinZoom: Infinity, crossOriginPolicy: false,
  });

  const say = (text) => { trouble.textContent = text; trouble.hidden = !text; };

  async function ask(path, options = {}) {
    const response = await fetch(base + path, { ...options, headers: { accept: "application/json", ...(options.headers || {}) } });
    const told = await response.json().catch(() => ({}));
    if (!response.ok) { throw Object.assign(new Error(told.error || "the server did not understand"), { status: response.status }); }
    return told;
  }

  function scaleBar() {
    const item = viewer.world.getItemAt(0);
    if (!item) { return; }
    const screenPerImage = item.viewportToImageZoom(viewer.viewport.getZoom(true));
    const most = 160 * mpp / screenPerImage;            // micrometres in 160 px of the screen
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((digit) => digit * power).find((one) => one <= most);
    const bar = byId("scale-bar").firstElementChild;
    bar.style.width = `${length * screenPerImage / mpp}px`;
    bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} \u00b5m`;
  }

  function tell() {
    const count = state.counts[shown.round];
    const what = shown.round === "practice" ? "Practice image" : "Image";
    byId("where").textContent = `${what} ${shown.place + 1} of ${count}`;
    byId("done").max = count;
    byId("done").value = shown.round === state.round ? state.place : count;
    back.disabled = shown.place === 0;
    next.textContent = isNext() ? "Next" : "Keep";
  }

  const isNext = () => shown.round === state.round && shown.place === state.place;

  const mayGoOn = () => { next.disabled = busy || !ready || !new FormData(form).get("score"); };

  function load() {
    viewer.open({ type: "image", url: `${base}/${shown.round}/${shown.place}/image.jpg`, buildPyramid: true });
  }

  function show(round, place, answer) {
    shown = { round, place };
    ready = false;
    clearTimeout(again);
    byId("scale-bar").firstElementChild.textContent = "";
    form.reset();
    if (answer) {
      const chosen = form.querySelector(`input[name=score][value="${answer.score}"]`);
      if (chosen) { chosen.checked = true; }
      form.elements.guess.value = answer.guess || "";
      form.elements.comment.value = answer.comment || "";
    }
    mayGoOn();
    tell();
    viewer.close();
    load();
    if (document.activeElement && document.activeElement !== document.body) { document.activeElement.blur(); }
  }

  function goOn() {
    say("");
    byId("finished").hidden = state.round !== null;
    if (state.round === null) { viewer.close(); return; }
    const practised = state.round === "study" && state.place === 0 && state.counts.practice > 0 && !begun;
    byId("between").hidden = !practised;
    if (practised) { byId("begin").focus(); return; }
    show(state.round, state.place, null);
  }

  async function renew() {
    try { state = await ask("/state"); goOn(); } catch (error) { say(`${error.message}. Check the connection, then reload the page.`); }
  }

  async function send(event) {
    event.preventDefault();
    const score = new FormData(form).get("score");
    if (busy || !score || !shown || !ready) { return; }
    busy = true;
    next.disabled = true;
    const answer = {
      round: shown.round, place: shown.place, turn: state.turn, score: Number(score), guess: form.elements.guess.value || null,
      comment: form.elements.comment.value.trim() || null, seconds: Math.min(1e6, (performance.now() - since) / 1000),
    };
    try {
      state = await ask("/answer", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(answer) });
      goOn();
    } catch (error) {
      if (error.status === 409) { await renew(); say(`${error.message}. This is where the reading stands.`); }
      else { say(`${error.message}. The answer is not kept yet; try again.`); }
    } finally { busy = false; mayGoOn(); }
  }

  async function goBack() {
    if (busy || !shown || shown.place === 0) { return; }
    busy = true;
    try {
      const place = shown.place - 1;
      show(shown.round, place, await ask(`/${shown.round}/${place}/answer`));
    } catch (error) { say(error.message); } finally { busy = false; mayGoOn(); }
  }

  function choose(score) {
    const input = form.querySelector(`input[name=score][value="${score}"]`);
    input.checked = true;
    mayGoOn();
  }

  function pause(on) {
    byId("pausing").hidden = !on;
    (on ? byId("go-on") : stage).focus();
    if (!on) { since = performance.now(); }
  }

  const covered = () => [...document.querySelectorAll(".cover")].some((cover) => !cover.hidden);
  const move = (x, y) => { viewer.viewport.panBy(viewer.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(x, y))); viewer.viewport.applyConstraints(); };
  const zoom = (factor) => { viewer.viewport.zoomBy(factor); viewer.viewport.applyConstraints(); };
  const fullSize = () => { const item = viewer.world.getItemAt(0); if (item) { viewer.viewport.zoomTo(item.imageToViewportZoom(1)); } };
  const fit = () => viewer.viewport.goHome();
  const keys = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), f: fit, F: fit, b: goBack, B: goBack, ArrowLeft: () => move(-120, 0),
    ArrowRight: () => move(120, 0), ArrowUp: () => move(0, -120), ArrowDown: () => move(0, 120), Enter: () => form.requestSubmit(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || covered()) { return; }
    const at = event.target;
    if (at.matches("input:not([type=radio]), select, textarea") || (event.key === "Enter" && at.matches("button"))) { return; }
    if (at.matches("input[type=radio]") && event.key.startsWith("Arrow")) { return; }
    if (/^[0-9]$/.test(event.key)) { choose(event.key === "0" ? 10 : Number(event.key)); event.preventDefault(); return; }
    if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
  });
  form.addEventListener("submit", send);
  form.addEventListener("change", mayGoOn);
  back.addEventListener("click", goBack);
  byId("fit").addEventListener("click", fit);
  byId("full-size").addEventListener("click", fullSize);
  byId("pause").addEventListener("click", () => pause(true));
  byId("go-on").addEventListener("click", () => pause(false));
  byId("begin").addEventListener("click", () => { begun = true; goOn(); });
  viewer.addHandler("open", () => {
    if (!ready && trouble.textContent === NOT_LOADED) { say(""); }
    ready = true;
    since = performance.now();
    scaleBar();
    mayGoOn();
  });
  viewer.addHandler("open-failed", () => { say(NOT_LOADED); again = setTimeout(load, AGAIN_MS); });
  for (const name of ["animation", "resize", "zoom"]) { viewer.addHandler(name, scaleBar); }
  renew();
})();
