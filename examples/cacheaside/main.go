// Command cacheaside puts a cache in front of a repository: a value is loaded
// when it is missing, by one caller for all who wait for it, and what does not
// exist is remembered as well.
//
//	go run ./examples/cacheaside
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/backstay/backstay/cache"
)

// User is what the repository holds.
type User struct {
	ID   int
	Name string
}

// Users is a repository whose reads are cached.
type Users struct {
	db    *database
	cache *cache.Cache[int, User]
}

// NewUsers returns a repository over db.
func NewUsers(db *database) (*Users, error) {
	c, err := cache.New(&cache.Config[int, User]{
		MaxEntries:  10_000,
		TTL:         time.Minute,
		NegativeTTL: 5 * time.Second, // how long "no such user" is believed
	})
	if err != nil {
		return nil, err
	}
	return &Users{db: db, cache: c}, nil
}

// Get returns a user; the error is cache.ErrNotFound if there is none.
func (u *Users) Get(ctx context.Context, id int) (User, error) {
	return u.cache.Get(ctx, id, u.load)
}

// load is called for what the cache does not hold: never twice at a time for the
// same user, and under a context that ends when nobody waits any more.
func (u *Users) load(ctx context.Context, id int) (User, error) {
	user, found, err := u.db.selectUser(ctx, id)
	if err == nil && !found {
		err = fmt.Errorf("user %d: %w", id, cache.ErrNotFound)
	}
	return user, err
}

// Rename changes the database first, and then has the cache forget: a load that
// is under way with the old name is not stored any more.
func (u *Users) Rename(id int, name string) {
	u.db.updateName(id, name)
	u.cache.Delete(id)
}

// Close waits for loads that are under way.
func (u *Users) Close() error { return u.cache.Close() }

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	db := &database{names: map[int]string{1: "Ada"}}
	users, err := NewUsers(db)
	if err != nil {
		return err
	}
	defer users.Close()

	var all errgroup.Group
	for range 100 {
		all.Go(func() error {
			_, err := users.Get(ctx, 1)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	fmt.Printf("100 callers at once: %d query\n", db.queries.Swap(0))

	for range 100 {
		if _, err := users.Get(ctx, 1); err != nil {
			return err
		}
	}
	fmt.Printf("100 more: %d queries\n", db.queries.Swap(0))

	for range 100 {
		if _, err := users.Get(ctx, 2); !errors.Is(err, cache.ErrNotFound) {
			return fmt.Errorf("user 2: got %w, want %w", err, cache.ErrNotFound)
		}
	}
	fmt.Printf("100 times nobody: %d query\n", db.queries.Swap(0))

	users.Rename(1, "Ada Lovelace")
	user, err := users.Get(ctx, 1)
	if err != nil {
		return err
	}
	fmt.Printf("renamed: %q, %d query\n", user.Name, db.queries.Swap(0))

	users.Rename(1, "Countess Lovelace")
	hurry, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err = users.Get(hurry, 1)
	fmt.Println("in a hurry:", err)

	s := users.cache.Stats()
	fmt.Printf("in all: %d hits, %d negative hits, %d misses, of which %d waited for another's load\n",
		s.Hits, s.NegativeHits, s.Misses, s.Coalesced)
	return nil
}

// database is slow, and counts its queries.
type database struct {
	queries atomic.Int64
	mu      sync.Mutex
	names   map[int]string
}

func (db *database) selectUser(ctx context.Context, id int) (user User, found bool, err error) {
	db.queries.Add(1)
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return User{}, false, ctx.Err()
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	name, found := db.names[id]
	return User{ID: id, Name: name}, found, nil
}

func (db *database) updateName(id int, name string) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.names[id] = name
}
