/* The layout that may be laid over an image: fetched when it is first wanted, drawn anew with every change of the view.
 *
 * What it counts are pixels of the first image.
 */
export class Layout {
  constructor(legend, size, panels, button) {
    this.legend = legend;
    this.size = size;
    this.panels = panels;
    this.button = button;
    this.shown = false;
    this.loaded = null;
    this.slider = legend.querySelector("input");
    this.slider.addEventListener("input", () => this.fade());
  }

  async load() {
    const answer = await fetch("/layout.json");
    if (!answer.ok) throw new Error(answer.statusText);
    const { classes, areas, picture } = await answer.json();
    this.areas = areas.map(([index, rings]) => ({ colour: classes[index].colour, path: pathOf(rings) }));
    if (picture) {
      this.picture = new Image();
      this.picture.src = "/layout.png";
      await this.picture.decode();
    }
    this.legend.querySelector("ul").replaceChildren(...classes.map(lineOf));
    this.layers = new Map(this.panels.map((panel) => [panel, ["fills", "outlines"].map((name) => layerOver(panel, name))]));
    this.fade();
  }

  async show(on) {
    this.shown = on;
    this.button.setAttribute("aria-pressed", on);
    try {
      await (this.loaded ??= this.load());
    } catch {
      this.loaded = null;
      this.panels[0].say("The layout cannot be shown: the viewer was ended.");
      return;
    }
    this.legend.hidden = !this.shown;
    for (const canvas of [...this.layers.values()].flat()) canvas.hidden = !this.shown;
    for (const panel of this.panels) this.draw(panel);
  }

  /* Only fills fade. */
  fade() {
    for (const [fills] of this.layers?.values() ?? []) fills.style.opacity = this.slider.value / 100;
  }

  /* An area covers what lies below it, fill and outline. */
  draw(panel) {
    if (!this.shown || !this.layers?.has(panel)) return;
    const dense = window.devicePixelRatio || 1;
    const { x, y, width, height } = panel.frame;
    const zoom = (width / this.size[0]) * dense;
    const [fills, outlines] = this.layers.get(panel).map((canvas) => {
      canvas.width = Math.round(panel.across * dense); // also clears it
      canvas.height = Math.round(panel.down * dense);
      const layer = canvas.getContext("2d");
      layer.setTransform(zoom, 0, 0, (height / this.size[1]) * dense, x * dense, y * dense);
      return layer;
    });
    if (this.picture) {
      fills.imageSmoothingEnabled = false;
      fills.drawImage(this.picture, 0, 0, ...this.size);
    }
    outlines.lineWidth = (2 * dense) / zoom;
    outlines.lineJoin = "round";
    for (const { colour, path } of this.areas) {
      fills.fillStyle = outlines.strokeStyle = colour;
      fills.fill(path, "evenodd");
      outlines.globalCompositeOperation = "destination-out";
      outlines.fill(path, "evenodd");
      outlines.globalCompositeOperation = "source-over";
      outlines.stroke(path);
    }
  }
}

function pathOf(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    path.moveTo(ring[0], ring[1]);
    for (let i = 2; i < ring.length; i += 2) path.lineTo(ring[i], ring[i + 1]);
    path.closePath();
  }
  return path;
}

function lineOf({ name, colour }) {
  const line = document.createElement("li");
  const swatch = document.createElement("i");
  swatch.style.background = colour;
  line.append(swatch, name);
  return line;
}

function layerOver(panel, name) {
  const canvas = document.createElement("canvas");
  canvas.className = `layout ${name}`;
  panel.viewer.canvas.append(canvas);
  return canvas;
}
