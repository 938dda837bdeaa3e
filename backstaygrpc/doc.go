// Package backstaygrpc has gRPC calls made by the engine of a *backstay.Client: by the
// same endpoints, nodes, breakers, limits and budgets that serve its HTTP calls.
//
//	client, err := backstay.New(nil)
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	conn, err := backstaygrpc.NewClient("orders:50051", client,
//		grpc.WithTransportCredentials(insecure.NewCredentials()))
//	if err != nil {
//		return err
//	}
//	defer conn.Close()
//	orders := ordersv1.NewOrdersClient(conn)
//
// What belongs to whom:
//
//   - A [Conn] is what generated clients take. Each node of the service has a
//     *grpc.ClientConn of its own, made when it gets its first call, idle after five
//     minutes without one, and closed when the node has left and has nothing more to do.
//     It takes about 44 KB and five goroutines.
//   - [DialOptions] is for libraries that insist on a *grpc.ClientConn.
//   - [Retry], [Breaker], [Rate], [Concurrency], [Propagate] and [Record] are single
//     policies, as interceptors around any connection. [Cache] keeps replies.
//   - [ServerLoad], [ServerPropagate] and [ServerLimit] are the servers' part, and
//     [HealthCheck] asks their health service.
//
// # The way of a call
//
// It is that of HTTP: route, rate, concurrency, then for each attempt a node, its
// breaker, its connection. A service's settings are in backstay.Config; what is for HTTP
// alone (Base's proxy and TLS, PerAttempt, CacheTTL, Classifier) means nothing here.
//
// Routes are by the full names of methods: "/orders.v1.Orders/Get", or
// "/orders.v1.Orders/*" for all of a service.
//
// The dial options hold for each node's connection: credentials, per-RPC credentials,
// keepalive, sizes, stats handlers. Interceptors among them are run for each attempt.
// The :authority and the name in certificates are the service's, or the endpoint's
// ServerName; options may say something else. Connections are dialed as those for HTTP
// are, at the node's address and its fallbacks, by the DialContext of the service's
// *http.Transport if it has one, unless there is a grpc.WithContextDialer. Proxies are
// not used. Retries of a service config are off, whatever the options say.
//
// # What is tried again
//
// [Classify] is the table. What was not sent – no connection, no stream – is tried
// elsewhere at once, whatever the method. What may have been acted on is repeated only
// if the method may be, which is said by, in this order: [Idempotent] for one call,
// [retry.WithIdempotent] for a context, RetryNonIdempotent of the route or the service,
// and the method's idempotency_level in its descriptor. Nothing is taken for idempotent
// by itself: that a code is Unavailable says nothing about what was done.
//
// Unary calls are repeated until they have a reply. Streams of the server are repeated
// until the first message or the header has been handed on. Streams of the client are
// repeated if they could not begin. Hedges go to another node, for unary calls and
// streams of the server.
//
// There is no timeout by default: deadlines are gRPC's habit. Timeout and
// AttemptTimeout bound where they are set, and the server is told of them; an attempt's
// bounds a unary attempt as a whole, and a server's stream until its header.
// BodyIdleTimeout bounds the wait for each message of a stream.
//
// # Fail fast, and wait for ready
//
// A call fails fast as in gRPC: a node whose connection has failed is passed over; if
// there is no other, the call fails with Unavailable, and was not sent. A call that
// waits for ready, by a call option or by default, waits for whichever node is there
// first, within its deadline; it also waits for an open breaker, and for a service that
// has no endpoints. Limits it does not wait for.
//
// # Errors
//
// All bear a status. A server's own is returned as it is; see [Error] for ours.
package backstaygrpc
