package backstaygrpc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"

	"github.com/backstay/backstay/balancer"
)

// Name is the scheme of the targets of [DialOptions], "backstay:///orders", and the
// name of the bridge among gRPC's balancers:
//
//	{"loadBalancingConfig": [{"backstay": {}}]}
//
// A connection whose target is another resolver's, such as "dns:///orders", has a
// balancer of its own then, which goes with it. Its settings are the fields of
// [balancer.Config] that are not for HTTP alone and those of [BridgeConfig], by their
// JSON names, and a policy:
//
//	{"backstay": {
//		"policy": {"weighted_round_robin": {"reported": true, "update": "2s"}},
//		"breaker": {"openTime": "10s"}, "maxConcurrency": 100, "loadInterval": "30s"
//	}}
//
// The policies are p2c (with "cost": "peak_ewma", "in_flight" or "load_report"),
// least_request, round_robin, weighted_round_robin, random, rendezvous and maglev; their
// settings are the fields of the types in package balancer, with a small letter in
// front. What is not known is refused, and the error says what it is.
//
// Such a connection also wants [AwaitHeaders], if it has streams.
const Name = "backstay"

// gRPC's registry is read without a lock by every connection that is made, so nothing
// may be written to it later: this is the only init of Backstay's.
func init() { //nolint:gochecknoinits // see above
	grpcbalancer.Register(bridgeBuilder{})
}

// BridgeConfig is what the bridge makes of calls. The zero value is the default in
// every field.
type BridgeConfig struct {
	// Classifier decides how an attempt ended. Default: [Classify].
	Classifier Classifier `json:"-"`
	// HashMetadata is the key of the outgoing metadata whose first value is the key of
	// policies that hash; [balancer.WithKey] comes before it. Default: none.
	HashMetadata string `json:"hashMetadata,omitempty"`
	// LatencyNeutral lists methods whose answers may take their time, such as streams
	// whose first message comes when something has happened: "/orders.v1.Orders/Watch",
	// or "/orders.v1.Orders/*" for all of a service. Their latency says nothing about
	// the node. Default: none.
	LatencyNeutral []string `json:"latencyNeutral,omitempty"`
	// LoadInterval is how often each node is asked to report its load by ORCA's
	// service, xds.service.orca.v3.OpenRcaService, beside what it says in the trailers
	// of calls. It is for balancer.WeightedRoundRobin; balancer.LoadReport wants
	// fresher news. Nodes without that service are not asked again. Negative: never.
	// Default: never.
	LoadInterval time.Duration `json:"loadInterval,omitempty"`
}

func (c *BridgeConfig) validate() (errs []error) {
	if c.HashMetadata != strings.ToLower(c.HashMetadata) || strings.HasPrefix(c.HashMetadata, "grpc-") {
		errs = append(errs, fmt.Errorf("backstaygrpc: HashMetadata is %q, want a key of metadata in lower case", c.HashMetadata))
	}
	for i, method := range c.LatencyNeutral {
		if service, name, ok := splitMethod(method); !ok || service == "" || name == "" {
			errs = append(errs, fmt.Errorf("backstaygrpc: LatencyNeutral[%d] is %q, want /service/method or /service/*", i, method))
		}
	}
	if c.LoadInterval > 0 && c.LoadInterval < leastLoadInterval {
		errs = append(errs, fmt.Errorf("backstaygrpc: LoadInterval is %v, want >= %v", c.LoadInterval, leastLoadInterval))
	}
	return errs
}

// splitMethod splits a full method name.
func splitMethod(full string) (service, method string, ok bool) {
	rest, slashed := strings.CutPrefix(full, "/")
	if service, method, ok = strings.Cut(rest, "/"); strings.Contains(method, "/") {
		ok = false
	}
	return service, method, ok && slashed
}

// DialOptions has a *grpc.ClientConn, which some libraries insist on, send its calls to
// the nodes of b:
//
//	up, err := client.Upstream("orders")
//	opts, err := backstaygrpc.DialOptions(up.Balancer(), nil)
//	conn, err := grpc.NewClient("backstay:///orders", append(opts, creds)...)
//
// The target's path is the name for TLS and for the :authority. Every policy, subsets,
// zones, breakers, outliers and limits of nodes hold; what they learn is b's, so that it
// is shared with HTTP where b is a client's. Nodes of which there is no connection that
// is ready are passed over, and each node has one connection, made by gRPC with the
// connection's own options. b remains its owner's, who closes it after the connections;
// a *backstay.Client does so with a service that has not been called for long, unless
// it is listed in Config.Services or somebody holds it by an Upstream.
//
// As long as connections are being made, calls wait; when none can be made, they fail
// with Unavailable, except those that wait for ready (gRPC's wait_for_ready). What b
// itself refuses – open breakers, full nodes – is an [*Error] with a status and fails
// those too, and gRPC does not retry it.
//
// What gRPC's own balancers are not told, this one is not told either:
//
//   - When the headers of a unary call have come: its latency is that of the whole
//     answer. Streams are answered at the first message, or at their headers if
//     somebody asks for Header.
//   - Which nodes a call has tried: the retries of a service config, which remain the
//     user's, may go to the same one again.
//
// A service config of the user's own stands in place of the one that is among the
// options, and so must come after them and name the balancer, too:
//
//	{"loadBalancingConfig": [{"backstay": {}}], "methodConfig": […]}
//
// A nil cfg is every default; it is copied.
func DialOptions(b *balancer.Balancer, cfg *BridgeConfig) ([]grpc.DialOption, error) {
	set := new(BridgeConfig)
	if cfg != nil {
		*set = *cfg
		set.LatencyNeutral = slices.Clone(cfg.LatencyNeutral)
	}
	errs := set.validate()
	if b == nil {
		errs = append(errs, errors.New("backstaygrpc: the balancer is nil, want one, such as that of an Upstream"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return []grpc.DialOption{
		grpc.WithResolvers(&sharedBuilder{&shared{b, newRules(set)}}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + Name + `":{}}]}`),
		grpc.WithChainStreamInterceptor(AwaitHeaders),
	}, nil
}

// shared is a balancer that somebody has made, on its way to the bridge.
type shared struct {
	balancer *balancer.Balancer
	rules    *rules
}

type sharedKey struct{}

// sharedBuilder is a resolver that resolves nothing: the balancer knows the nodes.
type sharedBuilder struct{ *shared }

func (b *sharedBuilder) Scheme() string { return Name }

func (b *sharedBuilder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	if target.Endpoint() == "" {
		return nil, fmt.Errorf("backstaygrpc: target is %q, want %s:///%s", target.String(), Name, b.balancer.Service())
	}
	// What is wrong with the settings for it, gRPC's side of the bridge has told already. A
	// balancer of gRPC's own misses addresses.
	if err := cc.UpdateState(resolver.State{Attributes: attributesOf(b.shared)}); errors.Is(err, grpcbalancer.ErrBadResolverState) {
		cc.ReportError(fmt.Errorf(`backstaygrpc: the service config does not name the balancer, want "loadBalancingConfig": [{%q: {}}] in it`, Name))
	}
	return sharedResolver{b.balancer}, nil
}

type sharedResolver struct{ balancer *balancer.Balancer }

func (r sharedResolver) ResolveNow(resolver.ResolveNowOptions) { r.balancer.Hint() }
func (r sharedResolver) Close()                                {}

// rules is a BridgeConfig as picks want it.
type rules struct {
	classifier   Classifier
	hash         string
	neutral      map[string]bool // methods, and services with a slash at their end
	loadInterval time.Duration
}

func newRules(cfg *BridgeConfig) *rules {
	r := &rules{classifier: cfg.Classifier, hash: cfg.HashMetadata, loadInterval: cfg.LoadInterval}
	if len(cfg.LatencyNeutral) > 0 {
		r.neutral = make(map[string]bool)
	}
	for _, full := range cfg.LatencyNeutral {
		r.neutral[strings.TrimSuffix(full, "*")] = true
	}
	return r
}

// aim has the call go where the rules, and its context, say.
func (r *rules) aim(b *balancer.Balancer, info *grpcbalancer.PickInfo, c *balancer.Call) {
	b.Aim(info.Ctx, c)
	if r.hash != "" && c.Key == "" {
		if md, ok := metadata.FromOutgoingContext(info.Ctx); ok {
			if values := md[r.hash]; len(values) > 0 {
				c.Key = values[0]
			}
		}
	}
	if r.neutral != nil {
		method := info.FullMethodName
		c.LatencyNeutral = r.neutral[method] || r.neutral[method[:strings.LastIndexByte(method, '/')+1]]
	}
}
