package controller

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/outrigger-mesh/outrigger/injector"
)

func TestOwnersAreToldOnce(t *testing.T) {
	seen := told{}
	for _, step := range []struct {
		reason injector.Reason
		want   bool
	}{{injector.HostNetwork, true}, {injector.HostNetwork, false}, {injector.Windows, true}, {injector.HostNetwork, true}} {
		if got := seen.isNews("a", step.reason); got != step.want {
			t.Errorf("%s is news: %t, want %t", step.reason, got, step.want)
		}
	}
	// A CronJob makes a Job each minute for years.
	for i := range 3 * maxTold {
		if !seen.isNews(types.UID(fmt.Sprint(i)), injector.HostNetwork) {
			t.Fatalf("owner %d was never told", i)
		}
	}
	if len(seen) > maxTold {
		t.Errorf("%d owners are remembered, at most %d should be", len(seen), maxTold)
	}
}
