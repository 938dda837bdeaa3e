//go:build !race

package backstaygrpc_test

const underRace = false
