// Where is each view? Behind '#', which no server sees.
export const runAddress = (name) => `#/run/${encodeURIComponent(name)}`;
export const candidateAddress = (name, pick) => `${runAddress(name)}/c/${encodeURIComponent(pick)}`;
export const newAddress = (name, start) =>
  `#/new?run=${encodeURIComponent(name)}${start === undefined ? "" : `&start=${start}`}`;
