package attempt

import (
	"context"
	"time"
)

// Direct says that the attempt's context goes to an *http.Transport as it is, and to
// nobody else: there may be no layer on the way that wraps it. It is called after
// Start and before anything else.
func (a *Attempt) Direct() { a.kind = direct }

// directContext is the attempt as the context of a request to an *http.Transport,
// which derives one of its own from it. It is of a kind of its own, and not one of
// package context's inside of another: that would be an allocation more, and a map for
// the one child. But package context finds it only where nothing is between the two;
// else it would start a goroutine for each child, which is why there is lazyContext.
type directContext Attempt

func (c *directContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }

// Value asks, once the attempt was ended before its time, a context of package
// context's that says why: [context.Cause] looks for it here.
func (c *directContext) Value(key any) any { return (*Attempt)(c).value(key) }

func (c *directContext) Done() <-chan struct{} {
	a := (*Attempt)(c)
	if !a.is(made) {
		a.make()
	}
	return c.done
}

// make makes the channel, and has somebody close it.
func (a *Attempt) make() {
	a.mu.Lock()
	if a.is(made) {
		a.mu.Unlock()
		return // another goroutine was faster
	}
	a.done = make(chan struct{})
	over := a.state.Or(made)&released != 0
	var cause error
	if a.rare != nil {
		cause = a.rare.cause
	}
	if over = over || cause != nil || a.parent.Err() != nil; !over {
		// If it is late already, the timer will say so at once.
		if due, kind := a.left(0); kind != nil {
			a.arm(due)
		}
	}
	a.mu.Unlock()
	switch {
	case over:
		a.end(cause)
	case a.parent.Done() != nil:
		leave := context.AfterFunc(a.parent, func() { a.end(nil) })
		a.mu.Lock()
		closed := a.closed
		if !closed {
			a.more().leave = leave
		}
		a.mu.Unlock()
		if closed {
			leave()
		}
	}
}

// endDirect closes the channel, and ends the contexts that were derived from the
// attempt's. The caller holds the lock, which this gives back.
func (a *Attempt) endDirect(cause error) {
	if cause != nil || a.parent.Err() != nil {
		ended, cancel := context.WithCancelCause(a.parent)
		cancel(cause)
		a.more().real = ended
		a.state.Or(told)
	}
	child := a.child
	a.child = nil
	var (
		leave    func() bool
		children map[*func()]struct{}
	)
	if rare := a.rare; rare != nil {
		leave, children = rare.leave, rare.children
		rare.leave, rare.children = nil, nil
	}
	close(a.done)
	a.mu.Unlock()
	if leave != nil {
		leave()
	}
	if child != nil {
		child()
	}
	for f := range children {
		(*f)()
	}
}

// AfterFunc is what package context asks of contexts that are not its own: f is
// called when the context has ended. What comes back keeps it from that.
func (c *directContext) AfterFunc(f func()) (stop func() bool) {
	a := (*Attempt)(c)
	c.Done()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		go f() // as package context does
		return func() bool { return false }
	case a.child == nil && !a.disowned:
		a.child = f
		return a.disown
	}
	rare := a.more()
	if rare.children == nil {
		rare.children = make(map[*func()]struct{})
	}
	key := new(func()) // and not f itself, which would move to the heap for everybody
	*key = f
	rare.children[key] = struct{}{}
	return func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		_, there := rare.children[key]
		delete(rare.children, key)
		return there
	}
}

// disown forgets the first child. Its place is not given away again, since this may be
// called more than once.
func (a *Attempt) disown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.disowned {
		return false
	}
	a.child, a.disowned = nil, true
	return true
}

func (c *directContext) Err() error {
	a := (*Attempt)(c)
	parent := c.parent.Err()
	if !a.is(made) {
		if parent == nil && !a.over() {
			return nil
		}
		a.make()
		a.check()
	}
	if parent != nil {
		a.end(nil) // before it is told: by then the channel is closed
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.closed:
		return nil
	case a.is(told):
		return a.rare.real.Err()
	}
	return context.Canceled
}
