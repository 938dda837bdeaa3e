//go:build !race

package backstay_test

const underRace = false
