package attempt_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/internal/attempt"
)

func TestSmallBodiesAreThoseOfNewRequestUpToALength(t *testing.T) {
	const limit = 64 << 10
	for _, test := range []struct {
		name string
		body io.Reader
		want bool
	}{
		{"none", nil, false},
		{"no body", http.NoBody, false},
		{"bytes reader", bytes.NewReader(make([]byte, 1)), true},
		{"strings reader", strings.NewReader("x"), true},
		{"buffer", bytes.NewBufferString("x"), true},
		{"at the limit", bytes.NewReader(make([]byte, limit)), true},
		{"beyond", bytes.NewReader(make([]byte, limit+1)), false},
		{"of unknown length", io.MultiReader(strings.NewReader("x")), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders", test.body)
			require.NoError(t, err)
			require.Equal(t, test.want, attempt.Small(req))
		})
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders", io.NopCloser(io.MultiReader()))
	require.NoError(t, err)
	req.ContentLength = 1
	require.False(t, attempt.Small(req), "somebody else's reader may block or fail")
	req.Body = nil
	require.False(t, attempt.Small(req))
}

func TestSmallBodyGoesToTheTransportAsItIs(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, strings.NewReader("content"))
	require.NoError(t, err)
	a := start(t.Context(), attempt.Limits{Attempt: time.Minute})
	sent := a.Request(new(http.Request), req)
	require.Equal(t, req.Body, sent.Body)
	resp, err := http.DefaultTransport.RoundTrip(sent)
	require.NoError(t, err)
	resp.Body = a.Wrap(resp.Body, nil)
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "content", string(got))
}
