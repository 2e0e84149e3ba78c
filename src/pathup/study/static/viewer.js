/* The slide viewer's page: buttons and keys, and two images that zoom and pan as one.
 *
 * One image leads, the one last touched. The other follows it in every frame, so both are in register while they move.
 */
import { Layout } from "./viewer_layout.js";
import { Panel } from "./viewer_panel.js";

const FINEST = 8; // pixels of the screen on one of the finest image's, at most
const COARSEST = 2; // how much smaller than the screen everything may become
const STEP = 1.5; // of the buttons for zooming
const MOVE = 0.15; // share of the screen, of an arrow key
const PAGE = 0.9; // with Shift
const Point = OpenSeadragon.Point;

const main = document.querySelector(".panels");
const elements = [...document.querySelectorAll(".panel")];
const sameField = main.dataset.sameField === "1";
let synced = elements.length > 1;
let fitted = false;

const physical = elements.every((element) => element.dataset.mppX);
const panels = elements.map((element) => new Panel(element, physical, (panel) => ({
  scales: [Math.min(...panels.map((one) => one.unit[0])) / FINEST, COARSEST * fitting(panels)],
  box: extent(synced ? panels : [panel]),
})));
let active = panels[0];
if (!sameField) { // nothing says which places belong together: their centres do, until they are joined otherwise
  const [left, top, right, bottom] = panels[0].box;
  for (const panel of panels.slice(1)) panel.offset = [(left + right - panel.box[2]) / 2, (top + bottom - panel.box[3]) / 2];
}

const ready = () => panels.every((panel) => panel.opened);
const button = (deed) => document.querySelector(`[data-do="${deed}"]`);

function extent(some) {
  const boxes = some.map((panel) => panel.box);
  return [0, 1, 2, 3].map((i) => (i < 2 ? Math.min : Math.max)(...boxes.map((box) => box[i])));
}

/* The scale at which some images are seen whole, one over the other, in the active panel. */
function fitting(some) {
  const [left, top, right, bottom] = extent(some);
  const square = active.unit[0] / active.unit[1]; // a shared unit of height is so many of width
  return Math.max((right - left) / active.across, ((bottom - top) * square) / active.down);
}

/* -- leading and following -- */

function lead(panel) {
  if (!panel.opened || panel === active) return;
  if (synced) active.halt();
  active = panel;
  for (const one of panels) one.element.classList.toggle("active", one === active);
}

function follow() {
  if (!synced || !ready()) return;
  const view = active.view(true);
  for (const panel of panels) if (panel !== active) panel.show(view, true);
}

/* Joined again, images of one field are in register; others stay as they stand to each other. */
function setSync(on) {
  if (panels.length < 2) return;
  for (const panel of panels) panel.show(panel.view(false), true);
  synced = on;
  document.body.classList.toggle("free", !on);
  button("sync").setAttribute("aria-pressed", on);
  for (const panel of panels) {
    panel.part(".cross").hidden = true;
    panel.element.classList.toggle("active", panel === active);
  }
  if (!on) return;
  const { place } = active.view(true);
  for (const panel of panels.filter((one) => one !== active && !sameField)) {
    const there = panel.view(true).place;
    panel.offset = panel.offset.map((at, i) => at + place[i] - there[i]);
  }
  follow();
}

/* Where the pointer is, shown in the other image. */
function cross(panel, event) {
  const frame = panel.element.getBoundingClientRect();
  const at = new Point(event.clientX - frame.left, event.clientY - frame.top);
  for (const other of panels.filter((one) => one !== panel && ready())) {
    const mark = other.part(".cross");
    mark.hidden = !synced || event.pointerType === "touch" || event.type === "pointerleave";
    const there = other.fromShared(panel.toShared(panel.viewport.pointFromPixel(at, true)));
    const { x, y } = other.viewport.pixelFromPoint(there, true);
    mark.style.transform = `translate(${x}px, ${y}px)`;
  }
}

/* -- what can be done -- */

function fit(at_once) {
  const some = synced ? panels : [active];
  const [left, top, right, bottom] = extent(some);
  active.show({ place: [(left + right) / 2, (top + bottom) / 2], scale: fitting(some) }, at_once);
  fitted = true;
  follow(); // where it fits already, nothing moves that the other could follow
}

function zoomTo(scale) {
  if (scale) zoomBy(active.view(false).scale / scale);
}

function zoomBy(factor) {
  fitted = false;
  active.viewport.zoomBy(factor);
  active.hold(false);
}

function move(x, y, share) {
  fitted = false;
  const pixels = new Point(x * share * active.across, y * share * active.down);
  active.viewport.panBy(active.viewport.deltaPointsFromPixels(pixels));
  active.hold(false);
}

const legend = document.querySelector(".legend");
const layout = legend && new Layout(legend, panels[0].size, panels.slice(0, Number(main.dataset.laidOver)), button("layout"));
const help = document.querySelector(".help");
const deeds = {
  fit: () => fit(false),
  native: () => zoomTo(active.unit[0]),
  in: () => zoomBy(STEP),
  out: () => zoomBy(1 / STEP),
  sync: () => setSync(!synced),
  layout: () => layout?.show(!layout.shown),
  full: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen?.()),
  help: () => (help.open ? help.close() : help.showModal()),
};
const arrow = (x, y) => (event) => move(x, y, event.shiftKey ? PAGE : MOVE);
const keys = {
  "0": deeds.fit, n: deeds.native, "+": deeds.in, "=": deeds.in, "-": deeds.out, _: deeds.out,
  s: deeds.sync, l: deeds.layout, f: deeds.full, "?": deeds.help,
  ArrowLeft: arrow(-1, 0), ArrowRight: arrow(1, 0), ArrowUp: arrow(0, -1), ArrowDown: arrow(0, 1),
};

for (const one of document.querySelectorAll("[data-do]")) {
  one.addEventListener("click", () => ready() && deeds[one.dataset.do]());
}
const magnifiers = [...document.querySelectorAll("[data-times]")];
magnifiers.forEach((one, index) => {
  const magnify = () => zoomTo(active.scaleAt(Number(one.dataset.times)));
  one.addEventListener("click", () => ready() && magnify());
  keys[String(index + 1)] = magnify;
});
document.addEventListener("keydown", (event) => {
  const deed = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const elsewhere = (event.target.matches("input") && event.key.startsWith("Arrow")) || (help.open && event.key !== "?");
  if (!deed || !ready() || elsewhere || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  deed(event);
});
document.addEventListener("fullscreenchange", () => {
  button("full").setAttribute("aria-pressed", Boolean(document.fullscreenElement));
});

for (const panel of panels) {
  for (const kind of ["pointerdown", "wheel", "focusin"]) {
    panel.element.addEventListener(kind, () => {
      lead(panel);
      if (kind !== "focusin") fitted = false;
    }, { capture: true, passive: true });
  }
  for (const kind of ["pointermove", "pointerleave"]) panel.element.addEventListener(kind, (event) => cross(panel, event));
  panel.viewer.addHandler("open", () => ready() && fit(true));
  panel.viewer.addHandler("viewport-change", () => panel === active && follow());
  panel.viewer.addHandler("after-resize", () => queueMicrotask(() => { // OpenSeadragon itself is not done yet
    if (!ready()) return;
    if (fitted) fit(true);
    else if (panel === active) panel.hold(true);
    follow();
  }));
  panel.viewer.addHandler("update-viewport", () => {
    if (!panel.opened) return;
    panel.tell();
    layout?.draw(panel);
    if (panel !== active) return;
    for (const one of magnifiers) {
      const is = panel.times !== null && Math.abs(panel.times / Number(one.dataset.times) - 1) < 0.005;
      one.setAttribute("aria-pressed", is);
    }
  });
}
