package backstaytest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// rig is a test that waits, but not for ever.
type rig struct {
	testing.TB
	patience time.Duration
}

// promptly runs f, which must return.
func (t rig) promptly(what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	timer := time.NewTimer(t.patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.Fatalf("%s has not ended within %v", what, t.patience)
	}
}

// eventually waits until ok answers true.
func (t rig) eventually(what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > t.patience {
			t.Errorf("%s within %v", what, t.patience)
			return
		}
	}
}

// equal complains if got is not want.
func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %s, want %s", what, short(got), short(want))
	}
}

// short is v as text, without the middle of long ones.
func short(v any) string {
	s := fmt.Sprintf("%#v", v)
	if len(s) > 200 {
		s = s[:90] + strings.Repeat(".", 3) + s[len(s)-90:]
	}
	return s
}
