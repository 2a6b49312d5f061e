// What a rater said and the server has not acknowledged: kept in this browser, and sent until it is.

const PREFIX = "mralign-unsent:";
const WAITS_MS = [500, 1000, 2000, 4000];

/** Ratings on their way. A rating that is sent twice is kept once: the server knows it by its number and item. */
export class Unsent {
  /**
   * @param {string} about round and rater.
   * @param {(rating: object) => Promise<object>} send rejects, with `status` where the server has answered.
   * @param {(state: {pending: number, problem: string, reply: object|null}) => void} changed
   */
  constructor(about, send, changed) {
    this.own = `${PREFIX}${about}:${Math.random().toString(36).slice(2)}`; // other pages of the rater have keys of their own
    this.send = send;
    this.changed = changed;
    this.pending = this.#left(`${PREFIX}${about}:`);
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
    this.pending.push(rating);
    this.#keep();
    this.flush();
  }

  #keep() {
    try {
      if (this.pending.length) localStorage.setItem(this.own, JSON.stringify(this.pending));
      else localStorage.removeItem(this.own);
      for (const key of this.adopted.splice(0)) localStorage.removeItem(key); // they stand under the own key now
    } catch { /* a full or closed storage: they are still in this page, and sent */ }
  }

  stop() { this.isOver = true; }

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
        if (error.status === 409) { // another page used the number for this item: what is said here is later
          rating.n = Math.max(...this.pending.map((each) => each.n)) + 1;
          this.#keep();
        }
        this.changed({ pending: this.pending.length, problem: error.message, reply: null });
        await new Promise((resolve) => setTimeout(resolve, WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]));
      }
    }
    this.isSending = false;
  }
}
