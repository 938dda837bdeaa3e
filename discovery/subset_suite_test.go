package discovery_test

import (
	"testing"
	"time"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

func TestDecoratorsThatLimitAreResolvers(t *testing.T) {
	for name, over := range map[string]func(discovery.Resolver) discovery.Resolver{
		"Subset": func(r discovery.Resolver) discovery.Resolver {
			return discovery.Subset(r, &discovery.SubsetConfig{Client: "c"})
		},
		"Subset of all": func(r discovery.Resolver) discovery.Resolver {
			return discovery.Subset(r, &discovery.SubsetConfig{Size: -1})
		},
		"MinEndpoints": func(r discovery.Resolver) discovery.Resolver { return discovery.MinEndpoints(r, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.TestResolver(t, grown(over), &backstaytest.ResolverOptions{Want: two, Patience: time.Minute})
		})
	}
}
