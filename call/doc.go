// Package call is what the layers of one call share: the frame that travels in
// the request's context, and the log that users read back.
//
// To see what happened to your calls, put a log into their context:
//
//	ctx, log := call.WithLog(ctx)
//	resp, err := client.Do(req.WithContext(ctx))
//	for _, c := range log.Calls() {
//		fmt.Println(c) // GET orders /v1/items: 200 in 63ms; 10.0.0.1:80 503 in 2ms; slept 41ms; 10.0.0.2:80 200 in 20ms
//	}
//
// The rest of the package is for those who write layers. Each entry – a Client,
// a gRPC call, a [Chain] of layers, a layer used alone – pushes a fresh [Frame],
// and layers work with the innermost frame only, and only if it was pushed for
// the chain that they belong to ([Join]). So a redirect, a token fetch inside a
// call, or a context that is used again never mixes calls. A nil *Frame is
// valid: its methods do nothing and answer zero.
package call
