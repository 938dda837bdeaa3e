package limit_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/limit"
)

func newRates(t testing.TB, cfg limit.RateGroupConfig) *limit.RateGroup {
	t.Helper()
	g, err := limit.NewRateGroup(&cfg)
	require.NoError(t, err)
	return g
}

func TestAGroupGivesEachKeyItsOwnRate(t *testing.T) {
	g := newRates(t, limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 1}})
	require.Same(t, g.Get("a"), g.Get("a"))
	require.NoError(t, g.Get("a").Allow(time.Time{}))
	require.ErrorContains(t, g.Get("a").Allow(time.Time{}), "for a,")
	require.NoError(t, g.Get("b").Allow(time.Time{}))
	require.Equal(t, 2, g.Len())

	require.True(t, g.Remove("a"))
	require.False(t, g.Remove("a"))
	require.NoError(t, g.Get("a").Allow(time.Time{}), "begun anew")
}

func TestManyKeysOfAGroupKeepWithinTheBound(t *testing.T) {
	g := newRates(t, limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 1}, MaxKeys: 100})
	for i := range 100_000 {
		g.Get(strconv.Itoa(i))
	}
	require.Equal(t, 100, g.Len())
}

func TestAGroupsUpdateReachesAllRatesAndTheBound(t *testing.T) {
	g := newRates(t, limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: 1}})
	for _, key := range []string{"a", "b", "c"} {
		require.NoError(t, g.Get(key).Allow(time.Time{}))
	}
	require.ErrorContains(t, g.Update(nil), "limit: Limit is 0")
	require.NoError(t, g.Update(&limit.RateGroupConfig{RateConfig: limit.RateConfig{Limit: -1}, MaxKeys: 2}))
	require.Equal(t, 2, g.Len())
	for _, key := range []string{"b", "c", "new"} {
		for range 10 {
			require.NoError(t, g.Get(key).Allow(time.Time{}))
		}
	}
}

func TestNewRateGroupReportsAllThatIsWrong(t *testing.T) {
	_, err := limit.NewRateGroup(&limit.RateGroupConfig{MaxKeys: -1})
	require.EqualError(t, err, "limit: Limit is 0, want > 0, or negative for no limit\nlimit: MaxKeys is -1, want >= 1")
	_, err = limit.NewRateGroup(nil)
	require.Error(t, err)
}
