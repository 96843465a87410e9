package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// metricsTimeout bounds what one scrape may take.
	metricsTimeout = 10 * time.Second
	// maxLine is the longest line of metrics that is passed on.
	maxLine = 64 << 10
)

// metricsHandler answers with Envoy's metrics in Prometheus' form, at /metrics and
// at the path that OSM had. It answers nothing else: whoever reaches the pod
// reaches it.
func (a *agent) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"/metrics", "/stats/prometheus"} {
		mux.HandleFunc("GET "+path, a.serveMetrics)
	}
	return mux
}

func (a *agent) serveMetrics(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), metricsTimeout)
	defer cancel()
	begun := false
	err := a.admin.do(ctx, http.MethodGet, "/stats/prometheus?usedonly", func(answer *http.Response) error {
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("ask Envoy for metrics: %s", answer.Status)
		}
		begun = true
		w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
		return rename(w, answer.Body)
	})
	switch {
	case err == nil:
	case begun: // half an answer must not pass for a whole one
		panic(http.ErrAbortHandler)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// rename copies metrics. Those of the mesh are called outrigger_..., without the
// prefix that Envoy puts before everything.
func rename(w io.Writer, r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	out := bufio.NewWriter(w)
	for lines.Scan() {
		line := lines.Bytes()
		for _, before := range []string{"", "# TYPE ", "# HELP "} {
			if rest, ok := bytes.CutPrefix(line, []byte(before+"envoy_outrigger_")); ok {
				line = append([]byte(before+"outrigger_"), rest...)
				break
			}
		}
		_, _ = out.Write(line)
		_ = out.WriteByte('\n')
	}
	return errors.Join(lines.Err(), out.Flush())
}
