// Package propagate is what a call tells the server, and what a server tells its
// own calls: how much time is left, which attempt this is, and whether it is of
// any use to try again.
//
// A client adds the headers to each attempt with [Layer], or with
// backstay.Service.Propagate; it is off by default, so that nothing of ours
// reaches services that did not ask for it. A server reads them with [Handler]:
//
//	http.ListenAndServe(":8080", propagate.Handler(mux, nil))
//
// The request's context then ends when nobody waits for the answer any more, and
// the calls that the handler makes under it tell the servers below the time that is
// left to them.
//
// Of the tiers that a request passes, only the one next to a failure tries again:
//
//   - Calls made on behalf of a request that is itself a second or later attempt,
//     or whose caller forbids it, are made once; they may still go to another node
//     where nothing could be sent to the first. What they tell the next tier
//     forbids repeating as well.
//   - If a call has been tried again in vain, or there is no budget to do so, and
//     the handler therefore answers with 500 or above, the answer says that the
//     request is not to be repeated. Backstay's clients heed that whether or not
//     they propagate anything themselves: see [outcome.RetryForbidden].
//
// All of it works through the context of the request, so it takes a handler that
// makes its calls under r.Context().
//
// The headers are such that others understand them:
//
//	Grpc-Timeout                    time left for the whole call, in gRPC's form
//	X-Envoy-Expected-Rq-Timeout-Ms  time left until the response's headers, in milliseconds
//	X-Envoy-Attempt-Count           the attempt's number, from 1
//	Backstay-Retry: no              in a request: repeat nothing for it; in a response: do not repeat it
//
// Times are durations, so that clocks need not agree; what the request spends on
// its way is not counted. They are rounded down.
//
// The package does not answer in a handler's place: a handler that ignores its
// context goes on.
package propagate
