/* One image of the slide viewer: its view, its scale bar, its small map.
 *
 * Places are told in shared units, in which both images lie: micrometres from a corner where both record their scale,
 * else shares of width and height. A view is a place (its centre) and how many shared units of width a pixel of the
 * screen shows. Pixels of the screen are the browser's (CSS pixels).
 */
const RULE_PX = 140; // longest scale bar
const UM_AT_1X = 10; // micrometres a pixel of the screen at 1x
const MAP_PX = 150; // longer side of the small map, and at most this share of the panel
const MAP_SHARE = 0.25;
const TOLD_MS = 8000; // how long a fault is told
const Point = OpenSeadragon.Point;

export const clamped = (value, low, high) => Math.min(Math.max(value, low), high);

export class Panel {
  /* physical: whether shared units are micrometres; limits: gives the scales and the box that a panel keeps to. */
  constructor(element, physical, limits) {
    const told = element.dataset;
    this.element = element;
    this.size = [Number(told.width), Number(told.height)];
    this.mpp = told.mppX ? [Number(told.mppX), Number(told.mppY)] : null;
    this.unit = physical ? this.mpp : this.size.map((side) => 1 / side); // shared units a pixel of the image
    this.offset = [0, 0]; // of its corner, in shared units
    this.opened = false;
    this.limits = limits;
    this.viewer = this.made(told.tiles);
  }

  made(tiles) {
    const longest = Math.min(MAP_PX, MAP_SHARE * this.element.clientWidth);
    const [width, height] = this.size.map((side) => Math.max(24, Math.round((longest * side) / Math.max(...this.size))));
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const viewer = OpenSeadragon({
      element: this.part(".image"),
      tileSources: tiles,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorWidth: `${width}px`,
      navigatorHeight: `${height}px`,
      navigatorAutoFade: false,
      navigatorOpacity: 1,
      navigatorBackground: "var(--slide)",
      navigatorBorderColor: "var(--line)",
      navigatorDisplayRegionColor: "var(--mark)",
      keyboardNavEnabled: false,
      preserveImageSizeOnResize: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: true },
      animationTime: calm ? 0 : 0.4,
      zoomPerScroll: 1.25,
      maxTilesPerFrame: 4,
      timeout: 120000, // the first look at a slide without small levels reads all of it
      tileRetryMax: 1,
    });
    viewer.addHandler("open", () => {
      this.opened = true;
      viewer.viewport.applyConstraints = (at_once) => this.hold(at_once);
    });
    viewer.addHandler("tile-load-failed", () => {
      this.say("A part cannot be read: the file is damaged or gone, or the viewer was ended. Reload to try again.");
    });
    viewer.addHandler("open-failed", () => this.say("This image cannot be shown: the viewer was ended.", true));
    return viewer;
  }

  part(selector) { return this.element.querySelector(selector); }

  get viewport() { return this.viewer.viewport; }
  get across() { return this.viewport.getContainerSize().x; }
  get down() { return this.viewport.getContainerSize().y; }

  /* Left, top, right and bottom in shared units. */
  get box() {
    const [x, y] = this.offset;
    return [x, y, x + this.size[0] * this.unit[0], y + this.size[1] * this.unit[1]];
  }

  /* OpenSeadragon counts in widths of the image, in both directions. */
  toShared(point) { return [point.x, point.y].map((at, i) => at * this.size[0] * this.unit[i] + this.offset[i]); }
  fromShared(place) { return new Point(...place.map((at, i) => (at - this.offset[i]) / (this.size[0] * this.unit[i]))); }
  zoomOf(scale) { return (this.size[0] * this.unit[0]) / (scale * this.across); }

  /* The view: as it is now, or as it will be when an animation has ended. */
  view(now) {
    const scale = this.zoomOf(1) / this.viewport.getZoom(now);
    return { place: this.toShared(this.viewport.getCenter(now)), scale };
  }

  show({ place, scale }, at_once) {
    this.viewport.zoomTo(this.zoomOf(scale), null, at_once);
    this.viewport.panTo(this.fromShared(place), at_once);
  }

  halt() { this.show(this.view(true), true); }

  /* In place of OpenSeadragon's own limits, which know one image only. */
  hold(at_once) {
    const { place, scale } = this.view(false);
    const { scales, box } = this.limits(this);
    const [left, top, right, bottom] = box;
    const kept = { place: [clamped(place[0], left, right), clamped(place[1], top, bottom)], scale: clamped(scale, ...scales) };
    if (Math.abs(kept.scale / this.unit[0] - 1) < 1e-6) kept.place = this.aligned(kept.place);
    if (kept.scale !== scale) this.viewport.zoomTo(this.zoomOf(kept.scale), this.viewport.zoomPoint, at_once);
    if (kept.place.some((at, i) => at !== place[i])) this.viewport.panTo(this.fromShared(kept.place), at_once);
    return this.viewport;
  }

  /* The place nearest to one where, at 1:1, pixels of the image lie on those of the screen and not between them. */
  aligned(place) {
    return place.map((at, i) => {
      const half = (i === 0 ? this.across : this.down) / 2;
      const corner = half - (at - this.offset[i]) / this.unit[i]; // of the image, on the screen
      return this.offset[i] + (half - Math.round(corner * devicePixelRatio) / devicePixelRatio) * this.unit[i];
    });
  }

  /* The shared scale of a magnification; null where the image records no scale. */
  scaleAt(times) { return this.mpp && (UM_AT_1X / times) * (this.unit[0] / this.mpp[0]); }

  /* Pixels of the image on one of the screen. */
  get density() { return this.size[0] / (this.viewport.getZoom(true) * this.across); }

  get times() { return this.mpp ? UM_AT_1X / (this.mpp[0] * this.density) : null; }

  /* The image on the screen: its corner and its size. */
  get frame() {
    const corner = this.viewport.pixelFromPoint(new Point(0, 0), true);
    return { x: corner.x, y: corner.y, width: this.size[0] / this.density, height: this.size[1] / this.density };
  }

  tell() {
    const { x, y, width, height } = this.frame;
    const whole = x > -1 && y > -1 && x + width < this.across + 1 && y + height < this.down + 1;
    this.element.classList.toggle("whole", whole);
    this.part(".rule").hidden = !this.mpp;
    if (!this.mpp) {
      this.part(".zoom").value = `${Number((100 / this.density).toPrecision(3))} %`;
      return;
    }
    const um = this.mpp[0] * this.density;
    const ten = 10 ** Math.floor(Math.log10(RULE_PX * um));
    const length = ten * [5, 2, 1].find((times) => times * ten <= RULE_PX * um);
    this.part(".length").textContent = length < 1000 ? `${Number(length.toPrecision(1))} µm` : `${Number((length / 1000).toPrecision(1))} mm`;
    this.part(".rule i").style.width = `${length / um}px`;
    this.part(".zoom").value = `${this.times < 9.95 ? Number(this.times.toPrecision(2)) : Math.round(this.times)}×`;
  }

  say(text, always = false) {
    const plate = this.part(".trouble");
    plate.textContent = text;
    plate.hidden = false;
    clearTimeout(this.silence);
    if (!always) this.silence = setTimeout(() => { plate.hidden = true; }, TOLD_MS);
  }
}
