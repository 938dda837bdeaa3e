package jsonconf_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/jsonconf"
)

// FuzzRoundTrip feeds bytes from outside: whatever is accepted is valid JSON,
// and means the same after having been written and read again.
func FuzzRoundTrip(f *testing.F) {
	for _, seed := range []string{
		fullJSON, `{}`, `null`, `[]`, `{"retry":{"base":"-1ns"}}`, `{"named":{"":"1h"}}`, `{"routes":{"\u0000":{}}}`,
		`{"methods":["\ud800"]}`, `{"ratio":-0}`, `{"steps":["2562047h47m16.854775807s","-2562047h47m16.854775808s"]}`,
		`{"retry":{"base":1,"base":2}}`, `{"x":{"y":[[[[`, `{"matrix":[{},null,{"a":[]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var first config
		if err := jsonconf.Unmarshal(data, &first); err != nil {
			require.True(t, strings.HasPrefix(err.Error(), "config: "), "%v", err)
			require.Equal(t, config{}, first)
			return
		}
		require.True(t, json.Valid(data))
		written, err := jsonconf.Marshal(first)
		require.NoError(t, err)
		var second config
		require.NoError(t, jsonconf.Unmarshal(written, &second), "%s", written)
		require.Equal(t, first, second, "%s", written)
		again, err := jsonconf.Marshal(second)
		require.NoError(t, err)
		require.Equal(t, string(written), string(again))
	})
}
