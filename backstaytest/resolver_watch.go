package backstaytest

import (
	"context"
	"time"

	"github.com/backstay/backstay/discovery"
)

// watchTrial is one run of a check.
type watchTrial struct {
	rig
	opts     ResolverOptions
	resolver discovery.Resolver
	change   func()
}

// yielded is what a watch has said.
type yielded struct {
	set discovery.Set
	err error
}

// watching is a watch on a goroutine of its own.
type watching struct {
	yields chan yielded
	ended  chan struct{}
	cancel context.CancelFunc
}

// watch begins one, which ends with the trial at the latest.
func (t *watchTrial) watch(ctx context.Context) *watching {
	ctx, cancel := context.WithCancel(ctx)
	w := &watching{yields: make(chan yielded), ended: make(chan struct{}), cancel: cancel}
	t.Cleanup(cancel)
	go func() {
		defer close(w.ended)
		for set, err := range t.resolver.Watch(ctx, t.opts.Service) {
			select {
			case w.yields <- yielded{set, err}:
			case <-ctx.Done():
			}
		}
	}()
	return w
}

// next waits for a set that is as ok wants it. Errors may come between.
func (t *watchTrial) next(w *watching, what string, ok func(discovery.Set) bool) discovery.Set {
	t.Helper()
	timer := time.NewTimer(t.patience)
	defer timer.Stop()
	var last error
	for {
		select {
		case y := <-w.yields:
			if last = y.err; y.err == nil && ok(y.set) {
				return y.set
			}
		case <-w.ended:
			t.Fatalf("the watch ended before it yielded %s (last error: %v)", what, last)
		case <-timer.C:
			t.Fatalf("the watch has not yielded %s within %v (last error: %v)", what, t.patience, last)
		}
	}
}

// first waits for the first set.
func (t *watchTrial) first(w *watching) discovery.Set {
	t.Helper()
	return t.next(w, "a set", func(discovery.Set) bool { return true })
}

// over waits for the end of a watch.
func (t *watchTrial) over(w *watching) {
	t.Helper()
	t.promptly("a watch whose context has ended", func() { <-w.ended })
}

// goesOn gives a watch a moment in which to end: so many short sleeps, for a single
// timer may be over while the machine has let nobody else run.
func (t *watchTrial) goesOn(w *watching) {
	t.Helper()
	const sleeps = 20
	pause := time.NewTicker(max(1, min(t.patience/4, 50*time.Millisecond)/sleeps))
	defer pause.Stop()
	for slept := 0; slept < sleeps; {
		select {
		case <-w.yields:
		case <-w.ended:
			t.Fatalf("the watch ended though its context lives")
		case <-pause.C:
			slept++
		}
	}
}

// letGo runs watches that end by themselves and looks for what is left of them.
func (t *watchTrial) letGo(watch func(ctx context.Context)) {
	t.Helper()
	t.promptly("a watch", func() { watch(t.Context()) }) // what it starts once, it may keep
	before := make(map[string]bool)
	for _, g := range goroutines() {
		before[g.id] = true
	}
	parent := newLongLived()
	for range 5 {
		t.promptly("a watch that is left", func() { watch(parent) })
	}
	t.eventually("the contexts derived from the watch's were not released", func() bool { return parent.children() == 0 })
	if left := leaked(before, t.patience); len(left) > 0 {
		t.Errorf("%d goroutines are left of watches that were left:\n\n%s", len(left), left[0])
	}
}
