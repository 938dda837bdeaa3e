package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/backstay/backstay/cache"
)

type User struct{ Name string }

// loadUser stands for a call to a database or another service.
func loadUser(_ context.Context, id int) (User, error) {
	if id != 1 {
		return User{}, fmt.Errorf("user %d: %w", id, cache.ErrNotFound)
	}
	fmt.Println("loading user", id)
	return User{Name: "Ada"}, nil
}

func ExampleNew() {
	users, err := cache.New(&cache.Config[int, User]{
		MaxEntries:  1_000,
		TTL:         5 * time.Minute,
		NegativeTTL: 10 * time.Second,
	})
	if err != nil {
		panic(err)
	}
	defer users.Close()
	users.Set(7, User{Name: "Grace"})
	u, ok := users.GetIfPresent(7)
	fmt.Println(u.Name, ok)
	// Output: Grace true
}

func ExampleCache_Get() {
	users, err := cache.New(&cache.Config[int, User]{NegativeTTL: time.Second})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	for range 3 {
		u, err := users.Get(ctx, 1, loadUser)
		fmt.Println(u.Name, err)
	}
	_, err = users.Get(ctx, 2, loadUser)
	fmt.Println(err, errors.Is(err, cache.ErrNotFound))
	// Output:
	// loading user 1
	// Ada <nil>
	// Ada <nil>
	// Ada <nil>
	// user 2: cache: not found true
}

func ExampleSetTTL() {
	type token struct {
		text    string
		expires time.Time
	}
	tokens, err := cache.New[string, token](nil)
	if err != nil {
		panic(err)
	}
	fetch := func(ctx context.Context, _ string) (token, error) {
		t := token{"secret", time.Now().Add(time.Hour)}
		cache.SetTTL(ctx, time.Until(t.expires)-5*time.Minute)
		return t, nil
	}
	t, err := tokens.Get(context.Background(), "orders", fetch)
	fmt.Println(t.text, err)
	// Output: secret <nil>
}

func ExampleNewHTTP() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Println("the server is asked")
		_, _ = io.WriteString(w, "hello")
	}))
	defer server.Close()

	responses, err := cache.NewHTTP(&cache.HTTPConfig{TTL: time.Minute})
	if err != nil {
		panic(err)
	}
	client := &http.Client{Transport: responses.Layer(nil)}
	for range 2 {
		resp, err := client.Get(server.URL)
		if err != nil {
			panic(err)
		}
		body, err := io.ReadAll(resp.Body) // to the end: only then is it stored
		if err != nil {
			panic(err)
		}
		_ = resp.Body.Close()
		fmt.Println(string(body))
	}
	client.CloseIdleConnections()
	// Output:
	// the server is asked
	// hello
	// hello
}
