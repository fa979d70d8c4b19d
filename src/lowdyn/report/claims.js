// Shows the claims of one verdict, or all, in the contents and below.
(() => {
  "use strict";

  const buttons = [...document.querySelectorAll("[data-filter]")];
  const claims = [...document.querySelectorAll("[data-verdict]")]; // lines of the contents, and sections
  const groups = [...document.querySelectorAll("[data-group]")]; // parts, shown while a claim of theirs is
  const status = document.getElementById("_shown");
  if (buttons.length === 0) return;

  function show(wanted) {
    for (const claim of claims) claim.hidden = wanted !== "all" && claim.dataset.verdict !== wanted;
    for (const group of groups) group.hidden = !group.querySelector("[data-verdict]:not([hidden])");
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.filter === wanted));
    const sections = claims.filter((claim) => claim.matches("article"));
    const shown = sections.filter((claim) => !claim.hidden).length;
    status.textContent = `${shown} of ${sections.length} ${sections.length === 1 ? "claim" : "claims"} shown`;
  }

  // A link leads to its claim also when the filter had hidden it.
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    show("all");
    target.scrollIntoView();
  }

  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.filter));
  document.getElementById("_filters").hidden = false;
  addEventListener("hashchange", reveal);
  show("all");
})();
