// The two views, Chat and Compare, as tabs; which one is open is in the address, so that a reload keeps it.

const tabs = [...document.querySelectorAll('[role="tab"]')];

/** Begins to listen; `shown` is called with the view's id when it comes into view. */
export function begin(shown) {
  for (const tab of tabs) {
    tab.addEventListener("click", () => open(tab, shown));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      open(next, shown);
      next.focus();
    });
  }
  addEventListener("hashchange", () => open(named(), shown));
  open(named(), shown);
}

/** The id of the view that is open. */
export function view() {
  return tabs.find((tab) => tab.ariaSelected === "true").getAttribute("aria-controls");
}

function named() {
  return tabs.find((tab) => location.hash === `#${tab.getAttribute("aria-controls")}`) ?? tabs[0];
}

function open(chosen, shown) {
  for (const tab of tabs) {
    const is = tab === chosen;
    tab.setAttribute("aria-selected", is);
    tab.tabIndex = is ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !is;
  }
  const id = chosen.getAttribute("aria-controls");
  document.body.dataset.view = id;
  if (location.hash !== `#${id}`) history.replaceState(null, "", id === "chat" ? location.pathname : `#${id}`);
  shown(id);
}
