package balancer

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
)

// What an update costs that changes one node of ten thousand, per node.
func BenchmarkUpdateOfOneNodeInTenThousand(b *testing.B) {
	const n = 10_000
	list := make([]discovery.Endpoint, n)
	for i := range list {
		list[i] = discovery.Endpoint{Addr: fmt.Sprintf("10.0.%d.%d:80", i/256, i%256), Zone: string(rune('a' + i%3))}
	}
	for name, cfg := range map[string]Config{
		"default":  {},
		"observed": {},
		"zones":    {Zones: ZoneConfig{Local: "a"}},
		"subsets":  {Subsets: map[string]Subset{"x": {Match: map[string]string{"v": "1"}}}},
	} {
		b.Run(name, func(b *testing.B) {
			if name == "observed" {
				cfg.Observer = event.ObserverFunc(func(context.Context, event.Event) {})
			}
			bal := start("orders", discovery.Static(list...), cfg.withDefaults())
			defer func() { require.NoError(b, bal.Close()) }()
			require.NoError(b, bal.Ready(b.Context()))
			next := slices.Clone(list)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				next[i%n].Weight = float64(i%7 + 2)
				bal.update(discovery.Set{Endpoints: next})
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/node")
		})
	}
}
