//go:build race

package balancer_test

// underRace says that the race detector is on. What runs on a single goroutine
// gains nothing by it but time, and does with fewer rounds then.
const underRace = true
