package cache

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestShardsShareNoCacheLine(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the layout is for 64 bits")
	}
	var s shard[string, int]
	require.EqualValues(t, 64, unsafe.Offsetof(s.mu))
	require.Zero(t, unsafe.Sizeof(s)%64)
}

func TestKeyThatIsHitAllTheTimeBecomesTheFavourite(t *testing.T) {
	c, err := New(&Config[string, int]{Shards: 1})
	require.NoError(t, err)
	c.Set("seldom", 1)
	c.Set("often", 2)
	for i := range 2 * sampling {
		c.GetIfPresent("often")
		if i%100 == 0 {
			c.GetIfPresent("seldom")
		}
	}
	f := c.shards[0].favourite.Load()
	require.NotNil(t, f)
	require.Equal(t, "often", f.key)
}

type constant string

func (c constant) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(string(c))), ContentLength: -1, Request: req,
	}, nil
}

func TestClearOfHTTPFreesItsResponses(t *testing.T) {
	h, err := NewHTTP(nil)
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://items", nil)
	require.NoError(t, err)
	resp, err := h.Layer(constant("x")).RoundTrip(req)
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, 1, h.store.Len())
	h.Clear()
	require.Zero(t, h.store.Len())
}
