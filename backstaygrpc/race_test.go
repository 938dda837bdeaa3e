//go:build race

package backstaygrpc_test

// underRace says that the race detector is on, which multiplies what tests cost
// and what the runtime allocates.
const underRace = true
