package cache

import (
	"errors"
	"log/slog"
	"time"
)

// LoadFailed is emitted when a loader returned an error other than ErrNotFound,
// panicked or ended its goroutine; not when it gave up because all who waited
// had left.
type LoadFailed struct {
	// Cache is Config.Name.
	Cache string
	// Key is what should have been loaded. It is not logged: keys may be
	// secrets, and there is no end of them.
	Key any
	// Err is what those who waited got.
	Err error
	// Duration is how long the load took.
	Duration time.Duration
}

// EventName is "cache.load_failed".
func (LoadFailed) EventName() string { return "cache.load_failed" }

// Level is Warn.
func (LoadFailed) Level() slog.Level { return slog.LevelWarn }

// LogValue holds the cache's name, the error and the duration, and the stack of a panic.
func (e LoadFailed) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("cache", e.Cache),
		slog.Any("error", e.Err),
		slog.Duration("duration", e.Duration),
	}
	if p, ok := errors.AsType[*PanicError](e.Err); ok {
		attrs = append(attrs, slog.String("stack", string(p.Stack)))
	}
	return slog.GroupValue(attrs...)
}
