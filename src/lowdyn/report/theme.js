// Light or dark: as the system has it until the reader chooses; remembered where a page may remember; light on paper.
(() => {
  "use strict";

  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = {
    get: () => { try { return localStorage.getItem("lowdyn-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("lowdyn-theme", theme); } catch { /* private window, sandbox */ } },
  };
  const current = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  if (["light", "dark"].includes(remembered.get())) root.dataset.theme = remembered.get(); // before the first paint

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("_theme");
    const show = () => {
      button.textContent = current() === "dark" ? "Light page" : "Dark page";
      document.dispatchEvent(new Event("themechange"));
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      remembered.set(root.dataset.theme);
      show();
    });
    dark.addEventListener("change", show);
    let before;
    addEventListener("beforeprint", () => {
      before = root.dataset.theme;
      root.dataset.theme = "light";
      show();
    });
    addEventListener("afterprint", () => {
      if (before === undefined) delete root.dataset.theme;
      else root.dataset.theme = before;
      show();
    });
    show();
  });
})();
