package balancer_test

import (
	"context"
	"net/http"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
)

func TestRequestsWithOneKeyGoToOneServerWhereverTheKeyIs(t *testing.T) {
	from := balancer.HashKey{Header: "X-User", Cookie: "user", Query: "user"}
	ways := map[string]func(req *http.Request, key string) *http.Request{
		"header": func(req *http.Request, key string) *http.Request { req.Header.Set("X-User", key); return req },
		"cookie": func(req *http.Request, key string) *http.Request {
			req.AddCookie(&http.Cookie{Name: "user", Value: key})
			return req
		},
		"query": func(req *http.Request, key string) *http.Request { req.URL.RawQuery = "a=b&user=" + key; return req },
		"context": func(req *http.Request, key string) *http.Request {
			return req.WithContext(balancer.WithKey(req.Context(), key))
		},
	}
	overProtocols(t, func(t *testing.T, p backstaytest.Protocol) {
		for name, policy := range hashing(0) {
			c := newCaller(t, 3, backstaytest.FleetConfig{Protocol: p}, balancer.Config{Policy: policy, HashKey: from}, nil)
			used := make(map[string]int)
			for i := range 40 {
				key, server := "user-"+strconv.Itoa(i), ""
				for way, set := range ways {
					resp, err := c.rt.RoundTrip(set(c.request(t.Context(), http.MethodGet, "/", nil), key))
					require.NoError(t, err)
					at := resp.Header.Get(backstaytest.InstanceHeader)
					if server == "" {
						server = at
					}
					require.Equal(t, server, at, "%s: %s by %s", name, key, way)
					read(t, resp)
				}
				used[server]++
			}
			require.Len(t, used, 3, "%s: %v", name, used)
			c.settled()
		}
	})
}

// keySpy is a policy that hashes, as far as anybody can tell.
type keySpy struct {
	balancer.Rendezvous
	seen *balancer.Call
}

func (s keySpy) NewPicker(nodes []*balancer.Node) balancer.Picker {
	return balancer.PickerFunc(func(c balancer.Call) *balancer.Node {
		*s.seen = c
		return nodes[0]
	})
}

func TestKeyIsTheFirstOfContextHeaderCookieAndQuery(t *testing.T) {
	every := balancer.HashKey{Header: "x-user", Cookie: "user", Query: "user"}
	for name, c := range map[string]struct {
		from    balancer.HashKey
		context string
		header  []string
		cookies string
		query   string
		want    string
	}{
		"all":                          {every, "c", []string{"h"}, "user=k", "user=q", "c"},
		"all but the context":          {every, "", []string{"h"}, "user=k", "user=q", "h"},
		"cookie and query":             {every, "", nil, "user=k", "user=q", "k"},
		"query alone":                  {every, "", nil, "", "user=q", "q"},
		"none":                         {every, "", nil, "", "", ""},
		"empty ones do not count":      {every, "", []string{""}, "user=", "user=q", "q"},
		"others do not count":          {every, "", nil, "users=k; User=k", "User=q", ""},
		"the first value":              {every, "", []string{"h", "i"}, "", "", "h"},
		"the first cookie":             {every, "", nil, "a=b; user=k; user=l", "", "k"},
		"the first parameter, decoded": {every, "", nil, "", "a=b&user=%C3%BC+1&user=z", "ü 1"},
		"a query that is half broken":  {every, "", nil, "", "%zz&user=q", "q"},
		"nothing is asked for":         {balancer.HashKey{}, "", []string{"h"}, "user=k", "user=q", ""},
		"nothing but the context":      {balancer.HashKey{}, "c", []string{"h"}, "", "", "c"},
		"only the query is asked for":  {balancer.HashKey{Query: "user"}, "", []string{"h"}, "user=k", "user=q", "q"},
		"only the header is asked for": {balancer.HashKey{Header: "X-User"}, "", nil, "user=k", "user=q", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var seen balancer.Call
			_, rt := over(t, 2, &balancer.Config{Policy: keySpy{seen: &seen}, HashKey: c.from}, func(req *http.Request) (*http.Response, error) {
				return answer(req, http.StatusOK, http.NoBody), nil
			})
			ctx := balancer.WithKey(t.Context(), c.context)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/?"+c.query, http.NoBody)
			require.NoError(t, err)
			for _, v := range c.header {
				req.Header.Add("X-User", v)
			}
			if c.cookies != "" {
				req.Header.Set("Cookie", c.cookies)
			}
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			read(t, resp)
			require.Equal(t, c.want, seen.Key)
		})
	}
}

func TestContextsKeyIsTheInnermostAndDisturbsNothingElse(t *testing.T) {
	var seen balancer.Call
	_, rt := over(t, 2, &balancer.Config{
		Policy: keySpy{seen: &seen}, Subsets: map[string]balancer.Subset{"canary": {Match: map[string]string{"version": "2"}}},
	}, func(req *http.Request) (*http.Response, error) { return answer(req, http.StatusOK, http.NoBody), nil })
	look := func(ctx context.Context) balancer.Call {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", http.NoBody)
		require.NoError(t, err)
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		read(t, resp)
		return seen
	}
	outer := balancer.WithKey(balancer.WithSubset(t.Context(), "canary"), "a")
	inner := balancer.WithKey(outer, "b")
	require.Equal(t, "b", look(inner).Key)
	require.Equal(t, "canary", look(inner).Subset)
	require.Equal(t, "a", look(outer).Key, "what was derived from it changes nothing")
	require.Empty(t, look(balancer.WithKey(inner, "")).Key)
	require.Empty(t, look(t.Context()).Key)
}

// A balancer that does not hash should not pay for the look.
func TestContextsKeyIsForPoliciesThatHash(t *testing.T) {
	var seen balancer.Call
	_, rt := over(t, 2, &balancer.Config{Policy: balancer.PolicyFunc(keySpy{seen: &seen}.NewPicker)}, func(req *http.Request) (*http.Response, error) {
		return answer(req, http.StatusOK, http.NoBody), nil
	})
	req, err := http.NewRequestWithContext(balancer.WithKey(t.Context(), "a"), http.MethodGet, "http://orders/", http.NoBody)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	read(t, resp)
	require.Empty(t, seen.Key)
	require.NotZero(t, seen.Now)
}
