package backstaygrpc_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzServiceConfig feeds what a resolver might get from outside: nothing of it may do
// more harm than to be refused with an error that says whose it is.
func FuzzServiceConfig(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"policy": {"p2c": {"cost": "in_flight"}}}`, `{"policy": {"maglev": {"tableSize": -1, "bound": 1e400}}}`,
		`{"policy": {"weighted_round_robin": {"update": "1ns"}}}`, `{"latencyNeutral": [null, "//"]}`, `{"hashMetadata": "\u0000"}`,
		`{"breaker": {"window": "2562047h"}, "subsets": {"": {}}}`, `{"policy": {"p2c": null}}`, `{"policy": null}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, settings string) {
		if err := parse(settings); err != nil {
			require.NotEmpty(t, err.Error())
		}
	})
}
