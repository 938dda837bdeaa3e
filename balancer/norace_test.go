//go:build !race

package balancer_test

// underRace says that the race detector is on.
const underRace = false
