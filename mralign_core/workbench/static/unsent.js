// What a rater said and the server has not acknowledged: kept in this browser, and sent until it is.

const PREFIX = "mralign-unsent:";
const WAITS_MS = [500, 1000, 2000, 4000];
const REFUSALS = [400, 404, 413, 415, 422]; // what sending again does not change; a lost key or a busy server may pass

/** Ratings on their way. A rating that is sent twice is kept once: the server knows it by its number and item. */
export class Unsent {
  /**
   * @param {string} about round and rater.
   * @param {(rating: object) => Promise<object>} send rejects, with `status` where the server has answered, and with
   *   `highest` where another page was ahead: the rater's highest number.
   * @param {(state: {pending: number, problem: string, reply: object|null}) => void} changed
   */
  constructor(about, send, changed) {
    this.own = `${PREFIX}${about}:${Math.random().toString(36).slice(2)}`; // other pages of the rater have keys of their own
    this.send = send;
    this.changed = changed;
    this.pending = this.#left(`${PREFIX}${about}:`);
    this.refused = []; // set aside, so that others are not kept waiting, and sent again when a page is loaded
    this.isSending = false;
    this.isOver = false;
  }

  /** What earlier pages left, which may have died, or still be sending: it becomes this page's too. */
  #left(prefix) {
    this.adopted = Object.keys(localStorage).filter((key) => key.startsWith(prefix));
    const found = this.adopted.flatMap((key) => {
      try { return JSON.parse(localStorage.getItem(key)) ?? []; } catch { return []; }
    });
    return found.sort((one, other) => one.n - other.n);
  }

  add(rating) {
    this.refused = this.refused.filter(({ rating: other }) => other.item !== rating.item); // said anew
    this.pending.push(rating);
    this.#keep();
    this.flush();
  }

  #keep() {
    try {
      const kept = [...this.refused.map(({ rating }) => rating), ...this.pending];
      if (kept.length) localStorage.setItem(this.own, JSON.stringify(kept));
      else localStorage.removeItem(this.own);
      for (const key of this.adopted.splice(0)) localStorage.removeItem(key); // they stand under the own key now
    } catch { /* a full or closed storage: they are still in this page, and sent */ }
  }

  stop() { this.isOver = true; }

  /** Another page was ahead: what is said here is later, and is taken back under its new number. */
  #renumber(rating, highest = 0) {
    const old = rating.n;
    rating.n = 1 + Math.max(highest, ...this.pending.map((each) => each.n));
    for (const each of this.pending) if (each.item === rating.item && each.undoes === old) each.undoes = rating.n;
    this.#keep();
  }

  #setAside(rating, problem) {
    this.pending.shift();
    this.refused.push({ rating, problem });
    this.#keep();
    this.changed({ pending: this.pending.length, problem: "", reply: null });
  }

  async flush() {
    if (this.isSending) return;
    this.isSending = true;
    let failures = 0;
    while (this.pending.length && !this.isOver) {
      const rating = this.pending[0];
      try {
        const reply = await this.send(rating);
        failures = 0;
        this.pending.shift();
        this.#keep();
        this.changed({ pending: this.pending.length, problem: "", reply });
      } catch (error) {
        if (REFUSALS.includes(error.status)) {
          this.#setAside(rating, error.message);
          continue;
        }
        if (error.status === 409) this.#renumber(rating, error.highest);
        this.changed({ pending: this.pending.length, problem: error.message, reply: null });
        await new Promise((resolve) => setTimeout(resolve, WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]));
      }
    }
    this.isSending = false;
  }
}
