package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// A store sells books and orders new ones from a warehouse.
type store struct {
	identity  string
	warehouse string // URL; empty for none
	client    *http.Client
	sold      atomic.Int64
}

func storeCommand() *cobra.Command {
	var s server
	var identity, warehouse string
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Sell books, and have the warehouse send new ones",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.run(cmd.Context(), newStore(identity, warehouse))
		},
	}
	s.flags(cmd, 14001, 5*time.Second)
	cmd.Flags().StringVar(&identity, "identity", "bookstore", "what the store calls itself in its answers")
	cmd.Flags().StringVar(&warehouse, "warehouse", "http://bookwarehouse.bookwarehouse.svc.cluster.local:14001",
		"URL of the warehouse; empty for none")
	return cmd
}

func newStore(identity, warehouse string) http.Handler {
	s := &store{identity: identity, warehouse: warehouse, client: newClient(true, 8)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /books-bought", func(w http.ResponseWriter, _ *http.Request) { s.report(w) })
	mux.HandleFunc("GET /buy-a-book/new", s.sell)
	mux.HandleFunc("POST /update-books-bought", s.update)
	return mux
}

// report says how many books were sold.
func (s *store) report(w http.ResponseWriter) {
	sold := s.sold.Load()
	w.Header().Set(identityHeader, s.identity)
	w.Header().Set("Booksbought", strconv.FormatInt(sold, 10))
	answer(w, map[string]any{"identity": s.identity, "booksBought": sold, "time": now()})
}

// sell sells a book and orders another. The buyer has the book even if the
// warehouse does not answer; the header Restocked tells that to those who look.
func (s *store) sell(w http.ResponseWriter, r *http.Request) {
	s.sold.Add(1)
	if s.warehouse != "" {
		q := request{
			url: s.warehouse + "/restock-books", method: http.MethodPost, body: "1",
			headers: []string{"client-app: " + s.identity}, timeout: 2 * time.Second,
		}
		order := q.do(r.Context(), s.client)
		if order.Status != http.StatusOK {
			slog.Warn("order books", "code", order.code(), "error", order.Err)
		}
		w.Header().Set("Restocked", order.code())
	}
	s.report(w)
}

// update sets how many books were sold.
func (s *store) update(w http.ResponseWriter, r *http.Request) {
	n, ok := number(w, r)
	if !ok {
		return
	}
	s.sold.Store(n)
	s.report(w)
}

// number reads a request's body, which must be a count, or answers that it is
// none.
func number(w http.ResponseWriter, r *http.Request) (int64, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64))
	if err != nil {
		http.Error(w, fmt.Sprintf("read body: %v", err), http.StatusBadRequest)
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, fmt.Sprintf("body %q: want a count of books, 0 or more", body), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

// A warehouse counts the books that it sent to stores.
type warehouse struct {
	sent atomic.Int64
}

func warehouseCommand() *cobra.Command {
	var s server
	cmd := &cobra.Command{
		Use:   "warehouse",
		Short: "Send books to stores",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context(), newWarehouse()) },
	}
	s.flags(cmd, 14001, 5*time.Second)
	return cmd
}

func newWarehouse() http.Handler {
	var house warehouse
	mux := http.NewServeMux()
	mux.HandleFunc("POST /restock-books", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := number(w, r); ok {
			house.sent.Add(n)
			house.report(w)
		}
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { house.report(w) })
	return mux
}

func (h *warehouse) report(w http.ResponseWriter) {
	w.Header().Set(identityHeader, "bookwarehouse")
	answer(w, map[string]any{"identity": "bookwarehouse", "booksSent": h.sent.Load(), "time": now()})
}
