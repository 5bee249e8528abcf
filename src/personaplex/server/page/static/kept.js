/** What a browser keeps for a page; where it may keep nothing, it is kept for as long as the page is open. */

class Kept {
  /** @param {() => Storage} open which a browser may refuse */
  constructor(open) {
    this.open = open;
    this.memory = new Map();
  }

  getItem(key) {
    try {
      return this.open().getItem(key);
    } catch {
      return this.memory.get(key) ?? null;
    }
  }

  setItem(key, value) {
    try {
      this.open().setItem(key, value);
    } catch {
      this.memory.set(key, value);
    }
  }
}

/** In this browser. */
export const inBrowser = new Kept(() => localStorage);

/** In this tab. */
export const inTab = new Kept(() => sessionStorage);

export { Kept };
