// Dark or light theme: the one last chosen in this browser, else the system's. Runs before the first paint.
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
    try { localStorage.setItem(KEY, next); } catch { /* Without storage, the choice lasts until the page is reloaded. */ }
    apply();
  };
  system.addEventListener("change", apply);
  addEventListener("load", apply);
  apply();
})();
