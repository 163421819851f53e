/* ---------- Stability: what another seed of the same training finds again ---------- */

/* Cosine from which two features count as the same. */
const SAME = 0.7;

/* Null for features that were not compared, and for all where the run has no other seed. */
const stabilityOf = (feature) => world.stability[feature] ?? null;
const isStable = (feature) => stabilityOf(feature) >= SAME;

const byChance = () => {
  const { stability_floor: floor } = world.manifest;
  return known(floor) ? `by chance ${fixed(2)(floor)}` : "";
};
const against = () => `Cosine of decoder directions matched one to one with those of ${world.manifest.stability_of}, the same training with another seed`;

/* The tick of the filter: how many count as found again, and what that is to be read against. */
function drawStability(tick) {
  tick.hidden = !world.stability.length;
  if (tick.hidden) return;
  $("stable-count").textContent = count(world.stability.filter((value) => value >= SAME).length);
  const mean = `mean ${fixed(2)(world.manifest.stability_mean)}, ${byChance()}`;
  tick.title = `Only features that another seed finds again, from a cosine of ${SAME}. ${against()}: ${mean}`;
}

const featureStability = (feature) =>
  known(stabilityOf(feature)) ? [fact("Stability", fixed(2)(stabilityOf(feature)), byChance(), against())] : [];
