// Draws the figures of the page, fits them to the width and to the theme, and lets the keyboard turn surfaces.
(() => {
  "use strict";

  const boxes = [...document.querySelectorAll("[data-figure]")];
  const figures = new WeakMap(); // box -> { data, layout } as the page holds it
  const NARROW = { flat: 640, solid: 900 }; // pixels: below, panels are stacked
  const MOST_SCENES = 12; // browsers drop the oldest WebGL context beyond about sixteen
  const NEEDS_WEBGL = /^(surface|mesh3d|scatter3d|cone|streamtube|volume|isosurface|splom|parcoords|.*gl)$/;
  const PAPER = 680; // pixels between the margins of a sheet
  const TURN = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  const loseContext = (context) => context?.getExtension("WEBGL_lose_context")?.loseContext();
  let webgl = null;
  function hasWebgl() {
    if (webgl === null) {
      const context = document.createElement("canvas").getContext("webgl");
      webgl = context !== null;
      loseContext(context);
    }
    return webgl;
  }

  // A theme is a few defaults laid over the figure's own template: what a figure sets itself stays.
  function themed(template) {
    const page = getComputedStyle(document.body);
    const ink = page.color;
    const soft = getComputedStyle(document.querySelector("figcaption")).color;
    const rule = getComputedStyle(document.querySelector(".claim")).borderTopColor;
    const copy = structuredClone(template ?? {});
    const layout = (copy.layout ??= {});
    const clear = "rgba(0,0,0,0)";
    Object.assign(layout, { paper_bgcolor: clear, plot_bgcolor: clear });
    layout.font = { ...layout.font, color: ink };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: page.backgroundColor, bordercolor: soft, font: { color: ink } };
    layout.modebar = { ...layout.modebar, bgcolor: clear, color: soft, activecolor: ink };
    const lines = { gridcolor: rule, zerolinecolor: rule, linecolor: soft, tickcolor: soft };
    for (const name of ["xaxis", "yaxis"]) layout[name] = { ...layout[name], ...lines };
    const scene = (layout.scene = { ...layout.scene, bgcolor: clear });
    for (const name of ["xaxis", "yaxis", "zaxis"]) scene[name] = { ...scene[name], ...lines, showbackground: false };
    return copy;
  }

  const look = () => getComputedStyle(document.body).color;
  const scenesOf = (layout) => Object.keys(layout ?? {}).filter((key) => /^scene\d*$/.test(key));
  const needsWebgl = (figure) => figure.data.some((trace) => NEEDS_WEBGL.test(trace?.type ?? ""));

  function say(box, sentence) {
    box.dataset.state = "failed";
    box.hidden = true;
    const problem = box.nextElementSibling;
    problem.textContent = `${sentence} Its numbers are below, as CSV and in words.`;
    problem.hidden = false;
  }

  function arrange(box) {
    const meta = box.layout?.meta;
    if (!meta?.narrow || !meta?.wide) return undefined;
    const limit = needsWebgl(figures.get(box)) ? NARROW.solid : NARROW.flat;
    const wanted = box.clientWidth < limit ? "narrow" : "wide";
    if (box.dataset.arranged === wanted) return undefined;
    box.dataset.arranged = wanted;
    box.style.minHeight = `${meta[wanted].height}px`;
    return Plotly.relayout(box, meta[wanted]);
  }

  // The scenes that were drawn first and are out of sight give up their contexts; they come back when seen again.
  function makeRoom() {
    const drawn = boxes.filter((box) => box.dataset.state === "drawn" && needsWebgl(figures.get(box)));
    let scenes = drawn.reduce((sum, box) => sum + Math.max(1, scenesOf(box.layout).length), 0);
    for (const box of drawn) {
      if (scenes <= MOST_SCENES) return;
      const { top, bottom } = box.getBoundingClientRect();
      if (bottom > -800 && top < innerHeight + 800) continue;
      scenes -= Math.max(1, scenesOf(box.layout).length);
      figures.set(box, { data: figures.get(box).data, layout: box.layout });
      const canvases = [...box.querySelectorAll("canvas")];
      Plotly.purge(box);
      for (const canvas of canvases) loseContext(canvas.getContext("webgl"));
      delete box.dataset.arranged;
      box.dataset.state = "waiting";
    }
  }

  async function draw(box) {
    if (box.dataset.state !== "waiting") return;
    try {
      const figure = figures.get(box) ?? JSON.parse(document.getElementById(box.dataset.figure).textContent);
      figures.set(box, figure);
      const solid = needsWebgl(figure);
      if (solid && !hasWebgl()) {
        say(box, "This picture is drawn with WebGL, which this browser does not offer.");
        return;
      }
      box.dataset.state = "drawing";
      const theme = look();
      const { width, ...layout } = figure.layout;
      if (printing) layout.width = PAPER;
      const config = {
        responsive: true,
        displaylogo: false,
        scrollZoom: false, // the wheel scrolls the page
        showSendToCloud: false, // no button that uploads the figure
        plotlyServerURL: "",
        modeBarButtonsToRemove: [
          "select2d", "lasso2d", "autoScale2d", "zoom2d", "pan2d", "zoom3d", "pan3d", "orbitRotation", "tableRotation",
          "resetCameraLastSave3d", "sendChartToCloud",
        ],
        toImageButtonOptions: { filename: box.dataset.name, format: solid ? "png" : "svg", scale: solid ? 2 : 1 },
      };
      await Plotly.newPlot(box, figure.data, { ...layout, template: themed(layout.template) }, config);
      await arrange(box);
      box.dataset.state = "drawn";
      for (const drawing of box.querySelectorAll(".main-svg")) drawing.setAttribute("aria-hidden", "true");
      if (theme !== look()) repaint();
      if (solid) {
        box.tabIndex = 0;
        box.setAttribute("role", "application"); // the arrow keys are this picture's, not the screen reader's
        box.setAttribute("aria-roledescription", "picture to turn");
        box.setAttribute("aria-label", `Surfaces of ${box.dataset.name}: arrow keys turn them`);
        box.closest("figure").querySelector(".hint").textContent = "Drag or use the arrow keys to turn.";
        makeRoom();
      }
    } catch (error) {
      say(box, `This picture cannot be drawn (${error?.message ?? error}).`);
    }
  }

  function turn(event) {
    const box = event.currentTarget;
    const step = TURN[event.key];
    if (!step || event.target !== box || box.dataset.state !== "drawn") return;
    event.preventDefault();
    const changes = {};
    for (const scene of scenesOf(box.layout)) {
      const { x, y, z } = box.layout[scene].camera?.eye ?? { x: 1.25, y: 1.25, z: 1.25 };
      const radius = Math.hypot(x, y, z);
      const azimuth = Math.atan2(y, x) + step[0] * 0.12;
      const height = Math.min(1.5, Math.max(-1.5, Math.asin(z / radius) + step[1] * 0.12));
      changes[`${scene}.camera.eye`] = {
        x: radius * Math.cos(height) * Math.cos(azimuth),
        y: radius * Math.cos(height) * Math.sin(azimuth),
        z: radius * Math.sin(height),
      };
    }
    Plotly.relayout(box, changes);
  }

  // One after another, so that the page answers between two figures.
  let queue = Promise.resolve();
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) queue = queue.then(() => draw(target));
    },
    { rootMargin: "500px" },
  );
  for (const box of boxes) {
    box.addEventListener("keydown", turn);
    seen.observe(box);
  }
  addEventListener("resize", () => boxes.filter((box) => box.dataset.state === "drawn").forEach(arrange));

  function repaint() {
    for (const box of boxes) {
      if (box.dataset.state === "drawn") Plotly.relayout(box, { template: themed(figures.get(box).layout.template) });
    }
  }
  document.addEventListener("themechange", repaint);

  // On paper every figure that is shown is drawn, as wide as the sheet; afterwards as wide as the page again.
  let printing = false;
  const shown = () => boxes.filter((box) => box.getClientRects().length > 0);
  addEventListener("beforeprint", () => {
    printing = true;
    for (const box of shown()) {
      if (box.dataset.state === "drawn") Plotly.relayout(box, { width: PAPER });
      else draw(box);
    }
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const box of shown()) {
      if (box.dataset.state === "drawn") Plotly.relayout(box, { width: null, autosize: true });
    }
  });
})();
