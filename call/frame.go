package call

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/outcome"
)

// Chain is the identity of layers that work together. A frame belongs to the
// chain it was pushed for, and only that chain's members use it.
type Chain struct{ members []any }

// NewChain returns the chain of the given layers. Members are compared with ==
// and so must be comparable; pointers are.
func NewChain(members ...any) *Chain { return &Chain{members: slices.Clone(members)} }

// Len returns the number of members.
func (c *Chain) Len() int {
	if c == nil {
		return 0
	}
	return len(c.members)
}

// Members returns the members.
func (c *Chain) Members() []any { return slices.Clone(c.members) }

func (c *Chain) has(member any) bool {
	return c != nil && slices.Contains(c.members, member)
}

// Info is what an entry knows of its call when it pushes a frame.
type Info struct {
	// Service is the logical name that the call goes to.
	Service string
	// Route is the pattern that the call matched, or empty.
	Route string
	// Method and Path say what was asked. Path bears no query: queries hold
	// secrets.
	Method, Path string
	// Start is when the call began.
	Start time.Time
}

// Frame is one call in flight and its attempts. A frame is used by one attempt
// at a time; a hedge has one [Frame.Beside] it, and what reads it from other
// goroutines goes through a [Log].
type Frame struct {
	info  Info
	chain *Chain
	entry any  // the layer that Enter pushed it for; nil if it was Push
	log   *Log // nil: nobody but the call's own goroutine looks

	mu       sync.Mutex // see lock
	attempts []Attempt  // also those of the frames beside it
	sent     int        // attempts that began by way of this very frame
	first    [1]Attempt // where attempts starts: most calls need no more
	refused  []Refusal  // of the attempt that has not begun yet
	slept    time.Duration
	why      string // slept, or went on without
	budget   int
	gaveUp   string
	cache    string
	took     time.Duration // until Finish; 0 before
	status   int
	err      error

	deadline       time.Time
	attemptTimeout time.Duration
	bodyIdle       time.Duration
	retrying       bool
	latencyNeutral bool
	subset         string
	others         bool
	answered       bool // answer and outcome are those of the current attempt
	shared         bool // others may look: a context carries it, or a log
	lent           bool // shared only as long as there may be a frame beside it
	elsewhere      bool
	claims         []claim // of frames beside it that must go elsewhere
	young          bool    // nothing has taken time since info.Start

	answer  any
	outcome outcome.Outcome

	of  *Frame // the frame that this one is beside; nil for the call's own
	own bool   // for the attempt of the frame that it is beside, not for a hedge
}

// frameContext is a context that carries a frame.
type frameContext struct {
	context.Context //nolint:containedctx // it is a context
	frame           *Frame
}

type frameKey struct{}

func (c *frameContext) Value(key any) any {
	if key == (frameKey{}) {
		return c.frame
	}
	return c.Context.Value(key)
}

// New returns a fresh frame for one call of the chain, which is made under ctx.
// Layers that know each other hand it down; [Carry] takes it past others.
func New(ctx context.Context, chain *Chain, info Info) *Frame {
	f, _ := free.Get().(*Frame)
	if f == nil {
		f = new(Frame)
	}
	f.info, f.chain = info, chain
	f.attempts = f.first[:0]
	if f.log = logOf(ctx); f.log != nil {
		f.shared = true
		f.log.add(f)
	}
	return f
}

// free holds frames for New.
var free sync.Pool //nolint:gochecknoglobals // it holds nothing that anybody could see

// Free ends the use of a frame by whoever has made it. Layers do not use a frame
// after they have returned, except for what [Frame.Watched] returns.
func (f *Frame) Free() {
	if f == nil || f.shared {
		return // somebody else may look at it, and for as long as he likes
	}
	*f = Frame{}
	free.Put(f)
}

// Watched returns what to keep of f for the end of a response's body: f if a
// [Log] looks at it, or else nil.
func (f *Frame) Watched() *Frame {
	if f == nil || f.log == nil {
		return nil
	}
	return f.call()
}

// Carry returns a context that carries f, for [Join] to find; ctx itself if it
// does so already or f is nil.
func Carry(ctx context.Context, f *Frame) context.Context {
	if f == nil || innermost(ctx) == f {
		return ctx
	}
	if !f.shared { // else others may be looking
		f.shared = true
	}
	if f.lent {
		f.lent = false
	}
	f.SetYoung(false)
	return &frameContext{ctx, f}
}

func innermost(ctx context.Context) *Frame {
	f, _ := ctx.Value(frameKey{}).(*Frame)
	return f
}

// Push returns a context with a fresh frame for one call of the chain.
func Push(ctx context.Context, chain *Chain, info Info) (context.Context, *Frame) {
	f := New(ctx, chain, info)
	return Carry(ctx, f), f
}

// Join returns the innermost frame of ctx if it was pushed for a chain that
// member belongs to, or else nil.
func Join(ctx context.Context, member any) *Frame {
	f := innermost(ctx)
	if f == nil || !f.chain.has(member) {
		return nil
	}
	return f
}

// lock guards a frame that others may look at: through a log, or below somebody
// else's layer, which may call down twice at once, or return before what is below
// it does. Most frames never leave the goroutine of their call, and save the locks.
func (f *Frame) lock() {
	if f.shared {
		f.lockShared()
	}
}

func (f *Frame) unlock() {
	if f.shared {
		f.unlockShared()
	}
}

// These two keep lock and unlock so short that they cost no call.
//
//go:noinline
func (f *Frame) lockShared() { f.mu.Lock() }

//go:noinline
func (f *Frame) unlockShared() { f.mu.Unlock() }

// Service returns the call's service, or "".
func (f *Frame) Service() string {
	if f == nil {
		return ""
	}
	return f.info.Service
}

// Route returns the pattern that the call matched, or "".
func (f *Frame) Route() string {
	if f == nil {
		return ""
	}
	return f.info.Route
}

// SetDeadline sets when the call, with all its attempts, must be over. It is a
// number and not a context: ctx.Deadline() stays the caller's, and the layer
// that sends an attempt enforces the nearer bound with one timer.
func (f *Frame) SetDeadline(t time.Time) {
	if f == nil {
		return
	}
	f.lock()
	f.deadline = t
	f.unlock()
}

// Deadline returns the call's deadline; zero if there is none of ours.
func (f *Frame) Deadline() time.Time {
	if f == nil {
		return time.Time{}
	}
	f.lock()
	deadline := f.deadline
	f.unlock()
	return deadline
}

// Start returns when the call began.
func (f *Frame) Start() time.Time {
	if f == nil {
		return time.Time{}
	}
	return f.info.Start
}

// Now returns the time. For a frame that is young it is the time that the call
// began, and saves a reading of the clock. f may be nil.
func Now(f *Frame) time.Time {
	if f != nil {
		f.lock()
		young := f.young
		f.unlock()
		if young {
			return f.info.Start
		}
	}
	return clock.Now()
}

// SetYoung says whether nothing has taken time since the call began. Whoever has
// just read the clock for Info.Start sets it, and a layer that may wait unsets it;
// so do a wait between attempts, an attempt, and a layer of somebody else's.
func (f *Frame) SetYoung(young bool) {
	if f == nil {
		return
	}
	f.lock()
	f.young = young
	f.unlock()
}

// BeginRetries reports whether the caller is the layer that makes this call's
// attempts. It answers true once per frame: a retry below another one in the
// same chain makes a single attempt, so that they never multiply.
func (f *Frame) BeginRetries() bool {
	if f == nil {
		return true
	}
	f.lock()
	was := f.retrying
	f.retrying = true
	f.unlock()
	return !was
}

// Slept notes that the next attempt waited for d first.
func (f *Frame) Slept(d time.Duration) {
	if f == nil {
		return
	}
	f.lock()
	f.slept += d
	f.young = false
	f.unlock()
}

// Because notes why there is another attempt after the one that has failed, such as
// [Backoff], and how many more the budget allowed when it had been taken.
func (f *Frame) Because(why string, budget int) {
	if f == nil {
		return
	}
	f.lock()
	f.why, f.budget = why, budget
	f.unlock()
}

// GaveUp notes why there is no other attempt although the last one has failed.
func (f *Frame) GaveUp(why string) {
	if f == nil {
		return
	}
	f = f.call()
	f.lock()
	f.gaveUp = why
	f.unlock()
}

// Number returns the number of the attempt that is about to be sent, from 1; it
// counts those of all frames of the call.
func (f *Frame) Number() int {
	if f == nil {
		return 0
	}
	f = f.call()
	f.lock()
	n := len(f.attempts) + 1
	f.unlock()
	return n
}

// Attempts returns how many attempts have been sent so far, without those that
// went by way of a frame [Frame.Beside] f.
func (f *Frame) Attempts() int {
	if f == nil {
		return 0
	}
	f.lock()
	n := f.sent
	f.unlock()
	return n
}

// Tried reports whether an attempt of this call has been sent to node.
func (f *Frame) Tried(node any) bool {
	if f == nil {
		return false
	}
	f = f.call()
	f.lock()
	defer f.unlock()
	return f.tried(node)
}

// tried is Tried for whoever holds the lock of the call's own frame.
func (f *Frame) tried(node any) bool {
	for i := range f.attempts {
		if f.attempts[i].key == node {
			return true
		}
	}
	return false
}

// TriedNodes returns the identities of the nodes that attempts of this call have
// been sent to.
func (f *Frame) TriedNodes() []any {
	if f == nil {
		return nil
	}
	f = f.call()
	f.lock()
	var keys []any
	for i := range f.attempts {
		if key := f.attempts[i].key; key != nil {
			keys = append(keys, key)
		}
	}
	f.unlock()
	return keys
}

// SetOthers notes whether there is a node that this call has not been sent to.
// The layer that chooses nodes says so when an attempt has failed.
func (f *Frame) SetOthers(others bool) {
	if f == nil {
		return
	}
	f = f.call()
	f.lock()
	f.others = others
	f.unlock()
}

// Others returns what SetOthers set: whether another attempt would have a node
// to go to that has not been tried.
func (f *Frame) Others() bool {
	if f == nil {
		return false
	}
	f.lock()
	others := f.others
	f.unlock()
	return others
}

// Refused notes that a node, or a layer, refused the attempt that is about to
// be made. by names what refused: "breaker", "concurrency", …; it is empty, and
// so is node, if there was no node to ask.
func (f *Frame) Refused(node, by string, err error) {
	if f == nil {
		return
	}
	f.lock()
	f.refused = append(f.refused, Refusal{Node: node, By: by, Err: err})
	f.unlock()
}

// Refusals returns how many times Refused has been called since the last attempt
// began.
func (f *Frame) Refusals() int {
	if f == nil {
		return 0
	}
	f.lock()
	n := len(f.refused)
	f.unlock()
	return n
}

// Send notes that an attempt is now being sent to a node: its identity (key,
// compared by Tried), its name and its address. Any of them may be empty where
// there is no balancer. It returns the attempt's index for Ended.
func (f *Frame) Send(now time.Time, key any, node, addr string) int {
	if f == nil {
		return 0
	}
	f.lock()
	slept, refused := f.slept, f.refused
	f.slept, f.refused = 0, nil
	f.sent++
	f.answered, f.answer, f.young = false, nil, false
	if f.of == nil {
		i := f.add(now, key, node, addr, slept, refused)
		f.attempts[i].Why, f.attempts[i].Budget = f.why, f.budget
		f.why, f.budget = "", 0
		f.unlock()
		return i
	}
	f.unlock()
	f.of.lock()
	i := f.of.add(now, key, node, addr, slept, refused)
	f.of.attempts[i].Hedge = !f.own
	f.of.attempts[i].Why, f.of.attempts[i].Budget = f.why, f.budget
	f.of.unlock()
	return i
}

// add appends an attempt. The caller holds the lock.
func (f *Frame) add(now time.Time, key any, node, addr string, slept time.Duration, refused []Refusal) int {
	i := len(f.attempts)
	f.attempts = append(f.attempts, Attempt{})
	a := &f.attempts[i]
	a.Node, a.Addr, a.Start, a.Slept, a.Refusals, a.key = node, addr, now, slept, refused, key
	return i
}

// Answered notes the end of attempt i: its response's headers (answer, usually a
// *http.Response, and its status) or an error (answer nil, the outcome bearing it).
// It is how the innermost layer tells the outer ones what it made of the answer:
// see Outcome.
func (f *Frame) Answered(now time.Time, i int, answer any, status int, o outcome.Outcome) {
	if f == nil {
		return
	}
	f.lock()
	if f.of == nil {
		f.note(now, i, status, o)
	}
	f.answer, f.outcome, f.answered = answer, o, true
	f.unlock()
	if f.of != nil {
		f.of.lock()
		f.of.note(now, i, status, o)
		f.of.unlock()
	}
}

// note fills in attempt i. The caller holds the lock.
func (f *Frame) note(now time.Time, i, status int, o outcome.Outcome) {
	if i >= 0 && i < len(f.attempts) {
		a := &f.attempts[i]
		a.Headers, a.Status, a.Outcome = max(now.Sub(a.Start), 1), status, o // 0 is awaited
	}
}

// Outcome returns what the innermost layer made of an answer, which is either a
// response or an error. It returns false if nobody has classified this very
// answer: then the layer must do it itself.
func (f *Frame) Outcome(answer any, err error) (outcome.Outcome, bool) {
	if f == nil {
		return outcome.Outcome{}, false
	}
	f.lock()
	answered, known, o := f.answered, f.answer, f.outcome
	f.unlock()
	switch {
	case !answered:
		return outcome.Outcome{}, false
	case err != nil:
		return o, known == nil && sameError(o.Err, err)
	}
	return o, answer != nil && known == answer
}

// sameError is a == b where that does not panic: errors need not be comparable.
func sameError(a, b error) bool {
	if a == nil || b == nil {
		return false
	}
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b //nolint:errorlint // identity is the point
}

// Ended notes that the body of attempt i has come to its end, or broken with
// the outcome's error. A zero now is the present.
func (f *Frame) Ended(now time.Time, i int, o outcome.Outcome) {
	if f == nil || f.log == nil {
		return // bodies end on any goroutine: without a log there is no lock
	}
	f = f.call()
	f.mu.Lock()
	defer f.mu.Unlock()
	if i < len(f.attempts) {
		a := &f.attempts[i]
		a.Total = clock.Or(now).Sub(a.Start)
		if o.Class != outcome.Success {
			a.Outcome = o
		}
	}
}

// SetCache notes what the cache did: "hit", "miss", "stale", …
func (f *Frame) SetCache(result string) {
	if f == nil {
		return
	}
	f.lock()
	f.cache = result
	f.unlock()
}

// Finish notes the end of the call: what the caller gets. It returns the call's
// record as it stands.
func (f *Frame) Finish(now time.Time, status int, err error) {
	if f == nil {
		return
	}
	f.lock()
	f.took, f.status, f.err = max(now.Sub(f.info.Start), 1), status, err
	f.unlock()
}
