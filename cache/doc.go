// Package cache keeps what was expensive to get, in this process's memory.
//
// A [Cache] is a bounded map whose entries expire, with loading built in:
//
//	users, err := cache.New[int, User](nil) // 10,000 entries, 1m
//	u, err := users.Get(ctx, id, db.User)   // func(ctx context.Context, id int) (User, error)
//
// However many ask for a key at the same time, one load runs:
//
//   - It runs on a goroutine of its own, with a context that has the values of
//     the first caller's and the end of none: it is cancelled when the last one
//     who waits for it has left. So each caller leaves when its own context ends
//     and takes nothing from the others.
//   - There is at most one load of a key at a time, also when all have left and
//     the loader does not mind being cancelled: who comes then waits for its end.
//     Only Set, Delete and Clear let a new one begin before: what they say is
//     newer than what a load that began before brings, which goes to those who
//     waited for it and is not stored.
//   - An error goes to all who wait and is not stored, but for [ErrNotFound] if
//     Config.NegativeTTL says so. A panic becomes a [*PanicError].
//   - A loader may ask the cache for other keys. For its own it gets
//     [ErrReentrant]. Loads of different callers that wait for each other in a
//     circle do so until their callers' contexts end.
//
// The keys live in shards, each an S3-FIFO: a hit takes a read lock at most, moves
// nothing and allocates nothing, and what is asked for once does not drive out
// what is asked for often. An entry is expired
// from its deadline on, for every method alike, and its memory is free when its
// place is taken. There are no goroutines but those of loads; [Cache.Close] waits
// for them.
//
// [HTTP] keeps responses: a layer for http.RoundTrippers.
//
// What the package does not do: no copies of values are made, so what they point
// to must not be changed; a value that has expired is gone, even if the loader
// then fails; nothing is shared with other processes.
package cache
