// Before anything is painted, so that nothing flashes: dark or light, as chosen here or as the system has it.
(() => {
  let chosen = null;
  try {
    chosen = JSON.parse(localStorage.getItem("medframe.theme"));
  } catch {
    // A browser that keeps nothing: the system's way.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
