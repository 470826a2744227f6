// Dark or light: what this browser chose last, else what its system says. Runs before the first paint.
(() => {
  const KEY = "loopwright-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try { return localStorage.getItem(KEY); } catch { return null; }
  };
  const apply = () => {
    const dark = (chosen() ?? (system.matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    if (window.Quasar?.Dark) Quasar.Dark.set(dark);
  };
  window.loopwrightTheme = () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem(KEY, next); } catch { /* A browser that keeps nothing still changes this page. */ }
    apply();
  };
  system.addEventListener("change", apply);
  addEventListener("load", apply);
  apply();
})();
