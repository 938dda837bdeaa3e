// Package backstay makes the clients of a service resilient: each call finds its
// endpoints, goes to the best of them, is answered from cache where that is
// allowed, is retried where that is safe – elsewhere, within a budget – and
// leaves alone what is broken.
//
//	client, err := backstay.New(nil) // every default
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer client.Close()
//	resp, err := client.Get("http://orders/v1/items")
//
// The host in a request's URL names the service. One [Client] serves a whole
// process; it is an http.RoundTripper, so that an http.Client that exists can
// have it as its Transport, and it embeds an *http.Client over itself.
//
// # The way of a call
//
//	caller
//	 │ observe          a fresh frame for this call; one event at its end
//	 │ route            the settings of the service and the route
//	 │ cache            may answer without a call
//	 │ rate             too many calls a second wait or are refused
//	 │ concurrency      too many calls under way wait or are refused
//	 │ retry            attempts, hedges, backoff, budget, deadline, body replay
//	 ╞═ for each attempt ═════════════════════════════════════════════
//	 │ per-attempt      the user's own layers: auth, signing, tracing
//	 │ balancer         picks a node: not one tried before, not an open or full one
//	 │ breaker          the node's, and its concurrency
//	 ▼ connection       the node's: HTTP/1.1, HTTP/2, h2c; TLS by the service's name
//
// Each of these is a package that works alone around any http.RoundTripper, in
// any order; [Chain] puts several together.
//
// # Defaults
//
//	endpoints          DNS, looked up again when the TTL is over (5s to 30s)
//	balancing          power of two choices, peak EWMA, decay 10s, slow start 10s
//	attempts           3 in all, where repeating is safe
//	backoff            full jitter, 50ms to 2s; a server's Retry-After up to 30s
//	budget             20 % of the calls of 10s, and 10 a second, per service
//	connect timeout    1s, then another node
//	attempt timeout    10s from the request written to the response's headers
//	call timeout       none: the caller's context rules
//	breaker, per node  50 % of at least 20 calls in 10s; open 5s, doubling to 60s
//	panic mode         below half of the nodes
//	cache, rate, concurrency   off
//
// # Errors
//
// What the peer said is never replaced by what Backstay thinks of it: when all
// attempts have failed, the caller gets the last response, or the last error.
// [Refused] tells the errors that are Backstay's own, [NotSent] those after which
// nothing has reached the peer, [RetryAfter] how long to wait. Each package has
// sentinels for errors.Is and types for errors.As.
//
// To see what happened to a call, put a log into its context: see
// [github.com/backstay/backstay/call.WithLog].
package backstay
