// Package retry tries calls again: those that may be repeated, when it can help,
// after a wait, and only as often as a budget allows.
//
//	r, err := retry.New(nil)
//	if err != nil {
//		return err
//	}
//	order, err := retry.Do(ctx, r, func(ctx context.Context) (Order, error) {
//		return fetch(ctx, id)
//	})
//
// Around HTTP it is a layer:
//
//	hc.Transport = r.Layer(hc.Transport)
//
// # What is tried again
//
// The outcome of an attempt says so: package outcome has the table. In short,
// what never reached the server is tried again in any case; after a reset, a
// timeout of an attempt, 408, 429, 502, 503 and 504 a call is tried again if it
// may be repeated. Over HTTP that is so for idempotent methods and requests with
// an Idempotency-Key, which Config.GenerateKey gives to those without; a function
// given to [Do] is taken to be such. [WithIdempotent] says it of a call, either way, and
// has priority. Never tried again
// are refusals of our own, the caller's cancel and deadline, failures of the
// request's own body, and what [outcome.Permanent] marks. What failed because of
// who answered (a wrong certificate) is tried once more if a balancer below can
// choose another node.
//
// # When
//
// A wait is drawn evenly between 0 and a bound that doubles from 50 ms to 2 s
// ("full jitter"), unless Backoff.Kind says otherwise. There is none when nothing was sent and a balancer below has
// another node left, one that this call has not tried: to wait would spare nobody
// anything. With one node, or without a balancer, a connection that could not be
// made is waited for like everything else. If the server names a time (Retry-After
// on 429 and 503), the wait is that time and up to a tenth more, or a second. A
// wait that the context's deadline or the call's timeout would cut short is not
// begun: the caller gets what there is at once.
//
// # How often
//
// Three times in all by default, and never more than the [Budget] allows: 20 %
// of the calls of the last 10 seconds and 10 per second, or, of another kind, a
// share of the calls under way, or as long as enough of them succeed. Each extra
// attempt is paid for before its wait. A service that is down altogether gets at most 1.2
// times its calls and 100 in 10 seconds.
//
// net/http repeats a request by itself when a kept connection turns out to be
// dead before anything was answered, and after some HTTP/2 refusals; these
// repetitions are part of one attempt, and no budget counts them.
//
// # Hedges
//
// With [HedgeConfig] an attempt that is without an answer for longer than nearly
// all take gets another one beside it, on another node, and the first good answer
// is the call's. The attempt itself runs on the caller's goroutine, and a hedge on
// that of a timer: a call that needs none costs a timer and no goroutine. An answer
// that fails never beats an attempt that lives, and when all have failed the call
// is tried again as usual.
//
// The attempt that loses is canceled, and the call is over only when it has
// returned: a transport, or a function, that does not heed its context, as
// net/http's does, gains nothing by hedges. Over HTTP/1.1 to cancel a request is to
// close its connection, unless what has lost has a grace (HedgeConfig.LoserGrace):
// then it goes on for that long, on a goroutine that was its own from the start, and
// what the caller does with his context and his request does not concern it any
// more. Breakers and balancers take it as neutral. A panic of a hedge is
// raised again on the caller's goroutine, unless the call is over.
//
// # What the caller gets
//
// The last attempt's result, never a summary in its place: the last response
// with err == nil, its body readable, or the last error. If the next attempt was
// refused, by the budget or by a breaker below, the result before stands; an
// error is then a [*StoppedError], which bears both.
//
// # Timeouts
//
// An attempt over HTTP may take 10 seconds from its request's being written
// (each part of an upload that goes out begins them anew) to its response's
// headers, connecting included; a long download is not cut. Config.Timeout
// bounds the whole call, and is off by default. The context that attempts run
// under reports the caller's own deadline. Our timeouts are
// [*outcome.TimeoutError]s: that of an attempt is tried again, that of the call
// ends it.
//
// # What it does not do
//
// It picks no node and keeps no health: see packages balancer and breaker, which
// belong inside it. It sends nothing of its own to the server. Where several
// programs in a row retry, their attempts multiply; the budget keeps that in
// bounds.
package retry
