// Candidate plans around a base: gaussian, smooth over time, the same for the same seed. Knows numbers only.

/** Uniform numbers 0..1 of a seed (mulberry32). */
function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers of a seed (Box and Muller). */
export function normal(seed) {
  const draw = uniform(seed);
  return () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());
}

/** `count` plans of rows like `base`, the first of them the base itself.
 *
 * deviations: of each number, 0 where it shall not move. smoothness 0..1: correlation from row to row. Every plan
 * starts at the base and moves away from it over the rows; `low` and `high`, where known, are not left by that.
 */
export function sample(base, { count, deviations, smoothness, seed, low = null, high = null }) {
  const draw = normal(seed);
  const fresh = Math.sqrt(1 - smoothness ** 2);
  return Array.from({ length: count }, (_, plan) => {
    const drift = deviations.map(() => 0);
    return base.map((row, at) => row.map((value, index) => {
      const noise = draw();
      drift[index] = smoothness * drift[index] + fresh * noise;
      if (plan === 0) return value;
      const share = Math.sqrt((at + 1) / base.length);
      return within(value + share * deviations[index] * drift[index], value, low?.[index], high?.[index]);
    }));
  });
}

/** Keep a number in a range, which its base may have left already. */
function within(value, base, low = -Infinity, high = Infinity) {
  return Math.min(Math.max(high, base), Math.max(Math.min(low, base), value));
}
