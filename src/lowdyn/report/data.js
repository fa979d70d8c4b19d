// Hands out the numbers of a picture as a CSV file, made from the figure that the page holds.
(() => {
  "use strict";

  const TYPES = {
    i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array,
    f4: Float32Array, f8: Float64Array,
  };

  // A list, or numbers packed as base64: plotly's own two forms.
  function numbers(array) {
    if (!array?.bdata) return array ?? [];
    const bytes = Uint8Array.from(atob(array.bdata), (sign) => sign.charCodeAt(0));
    const values = [...new TYPES[array.dtype](bytes.buffer)].map((value) => {
      if (array.dtype !== "f4" || !Number.isFinite(value)) return value;
      // The shortest decimals that are this float32: 0.1, not 0.10000000149011612.
      for (let digits = 6; digits < 9; digits++) {
        if (Math.fround(Number(value.toPrecision(digits))) === value) return Number(value.toPrecision(digits));
      }
      return value;
    });
    const columns = Number(String(array.shape ?? "").split(",")[1]);
    if (!columns) return values;
    return Array.from({ length: values.length / columns }, (_, k) => values.slice(k * columns, (k + 1) * columns));
  }

  function plain(text) {
    const page = new DOMParser().parseFromString(String(text ?? "").replaceAll(/<br\/?>/g, " "), "text/html");
    return page.body.textContent.trim();
  }

  // RFC 4180. No text begins as a formula of a spreadsheet does.
  function cell(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number") return String(value);
    const text = String(value).replace(/^(?=[=+\-@\t\r])/, "'");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  const place = (name, prefix) => Number(String(name ?? prefix).slice(prefix.length) || 1);

  function bandOf(trace, data) {
    const band = data.find((one) => one.mode === "none" && one.legendgroup === trace.legendgroup);
    if (!band) return new Map();
    const [x, y] = [numbers(band.x), numbers(band.y)];
    const half = x.length / 2; // the low edge from left to right, then the high edge back
    return new Map(Array.from({ length: half }, (_, k) => [x[k], [y[k], y[2 * half - 1 - k]]]));
  }

  function rows({ data, layout }) {
    const titles = (layout.annotations ?? []).map((note) => plain(note.text));
    const panel = (axis, prefix) => titles[place(axis, prefix) - 1] ?? "";
    const table = [];
    for (const trace of data) {
      if (trace.type === "surface") {
        const [x, y, z] = [trace.x, trace.y, trace.z].map(numbers);
        y.forEach((step, i) => x.forEach((index, k) => table.push([panel(trace.scene, "scene"), index, step, z[i][k]])));
      } else if (trace.mode !== "none") {
        const band = bandOf(trace, data);
        const [x, y] = [numbers(trace.x), numbers(trace.y)];
        const [above, below] = [numbers(trace.error_y?.array), numbers(trace.error_y?.arrayminus)];
        x.forEach((at, k) => {
          const bars = above.length ? [y[k] - below[k], y[k] + above[k]].map((end) => Number(end.toPrecision(7))) : null;
          const [low, high] = bars ?? band.get(at) ?? [null, null];
          table.push([panel(trace.yaxis, "y"), plain(trace.name), at, y[k], low, high]);
        });
      }
    }
    if (data.some((trace) => trace.type === "surface")) return [["panel", "index", "step", "value"], ...table];
    for (const shape of layout.shapes ?? []) {
      if (shape.y0 === shape.y1) table.push(["", plain(shape.label?.text), null, shape.y0, null, null]);
    }
    return [["panel", "series", "x", "y", "low", "high"], ...table];
  }

  for (const button of document.querySelectorAll("[data-download]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const figure = JSON.parse(document.getElementById(button.dataset.download).textContent);
      const lines = rows(figure).map((row) => `${row.map(cell).join(",")}\r\n`);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff", ...lines], { type: "text/csv" }));
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });
  }
})();
