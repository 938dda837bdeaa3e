package backstaytest

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"
)

// CheckLeaks fails the test if, when it ends, goroutines run that did not run
// when CheckLeaks was called. It waits up to 5 s for them to end, so that what
// is on its way out does not count, and prints the stacks of those that stay.
// Call it first, so that its look comes after every other cleanup.
//
// It is for tests outside of a testing/synctest bubble, which makes the same
// check by itself, and not for tests that run in parallel with others, whose
// goroutines it would count too. Connections that a transport keeps idle are
// leaks: close them.
func CheckLeaks(t testing.TB) {
	t.Helper()
	checkLeaks(t, 5*time.Second)
}

func checkLeaks(t testing.TB, patience time.Duration) {
	t.Helper()
	before := make(map[string]bool)
	for _, g := range goroutines() {
		before[g.id] = true
	}
	t.Cleanup(func() {
		t.Helper()
		if left := leaked(before, patience); len(left) > 0 {
			t.Errorf("backstaytest: %d goroutines leaked:\n\n%s", len(left), strings.Join(left, "\n\n"))
		}
	})
}

// leaked returns the stacks of the goroutines that are not in before and are
// still there after patience.
func leaked(before map[string]bool, patience time.Duration) []string {
	for pause, waited := time.Millisecond, time.Duration(0); ; pause *= 2 {
		var left []string
		for _, g := range goroutines() {
			if !before[g.id] {
				left = append(left, g.stack)
			}
		}
		if len(left) == 0 || waited >= patience {
			return left
		}
		pause = min(pause, 100*time.Millisecond)
		time.Sleep(pause)
		waited += pause
	}
}

type goroutine struct{ id, stack string }

// goroutines returns all but the calling one and those that belong to the
// runtime and the testing package.
func goroutines() []goroutine {
	buf := make([]byte, 1<<16)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	stacks := bytes.Split(bytes.TrimSpace(buf), []byte("\n\n"))
	var all []goroutine
	for _, stack := range stacks[1:] { // the first is this one
		text := string(stack)
		header, _, _ := strings.Cut(text, "\n")
		fields := strings.Fields(header) // goroutine 7 [state]:
		if len(fields) < 2 || ofTheHouse(text) {
			continue
		}
		all = append(all, goroutine{fields[1], text})
	}
	return all
}

// ofTheHouse reports whether a goroutine comes and goes with the process or
// with tests as such.
func ofTheHouse(stack string) bool {
	for _, mark := range []string{
		"created by testing.",
		"created by runtime.",
		"created by runtime/trace.",
		"created by os/signal.",
		"testing.RunTests(",
		"testing.tRunner(",
		"internal/synctest.Run(",
	} {
		if strings.Contains(stack, mark) {
			return true
		}
	}
	return false
}
