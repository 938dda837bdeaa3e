// Package call is what the layers of one call share: the frame that they hand
// down to each other, and the log that users read back.
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
// a [Chain] of layers, a layer used alone – makes a fresh [Frame]. Layers of ours
// that stand next to each other hand it down; past others the request's context
// carries it ([Carry]), and then a layer works with the innermost frame only, and
// only if it was made for the chain that it belongs to ([Join]). So a redirect, a
// token fetch inside a call, or a context that is used again never mixes calls.
// A nil *Frame is valid: its methods do nothing and answer zero.
package call
