/*
 * fanout - a load client for servers that fan messages out to many
 * long-lived HTTP connections (SSE, WebSocket, raw streams).
 *
 * One thread, one epoll set, libc and zlib only.  It
 *   1. opens N connections and waits until every one has its response headers,
 *   2. waits --settle seconds and samples the server's memory,
 *   3. publishes M messages of S bytes (Redis PUBLISH, HTTP POST, or lines on
 *      a TCP socket), each carrying a sequence number and a CLOCK_MONOTONIC
 *      send stamp,
 *   4. checks that every connection gets every sequence number exactly once
 *      and in order, and prints one JSON line.
 *
 * A message is  ^SSSSSSSSTTTTTTTTTTTTTTTT;xxxxx...  (8 hex digits of sequence
 * number, 16 hex digits of nanoseconds, padding up to S bytes).  The receiver
 * looks for '^' followed by 24 hex digits and ';' and parses nothing else
 * (in WebSocket mode it also walks the frame headers).  With --channels K,
 * connection I follows channel I modulo K, and message number S is published
 * to channel S modulo K, so 4. holds in each channel.  With --reconnect it
 * reads server-sent events as a browser does, line by line: an event counts
 * when its blank line has come, and a connection that ends is made again with
 * the last id it has seen, so that 4. holds over all its connections.
 *
 * See README.md for the options.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define MARK '^'
#define STAMP_LEN 26		/* '^' + 8 + 16 + ';' */
#define MAX_PIDS 16
#define MAX_EVENTS 1024
#define RBUF (1 << 20)
#define HEAD_MAX 4096		/* longest response head accepted */
#define ID_MAX 64		/* longest id remembered */
#define WS_RSV1 0x40		/* a frame of a compressed message (RFC 7692) */
#define LINE_KEPT 128		/* of an SSE line that is cut by the end of a read */
#define CONNS_PER_SRC 20000	/* connections per 127.0.0.x source address */

enum { MODE_SSE, MODE_WS, MODE_RAW };
enum { PUB_REDIS, PUB_HTTP, PUB_LINE };
enum { ST_CONNECTING, ST_HEAD, ST_STREAM, ST_SLOW, ST_AWAY, ST_CLOSED };

struct conn {
	int fd;
	uint8_t state;
	uint8_t slow;		/* never reads after the response head */
	uint8_t carry_len;	/* bytes of a stamp cut by the end of a read */
	uint8_t ws_hlen;	/* WebSocket frame header bytes held in ws_head */
	uint32_t next;		/* the sequence number expected next */
	uint32_t got;		/* distinct messages received */
	uint64_t ws_left;	/* payload bytes left in the current frame */
	unsigned char ws_head[14];
	char *ws_packed;	/* the payload of a compressed frame, until it is complete */
	size_t ws_packed_len;
	char carry[STAMP_LEN];
	char *head;		/* response head, until it is complete */
	int head_len;
	uint8_t *seen;		/* bitmap, made only after the first anomaly */
	struct sse *sse;	/* with --reconnect */
};

/* what a client that comes back remembers, and the event that is being read */
struct sse {
	uint64_t cut_at, due;	/* nanoseconds: when it was cut, when it returns */
	uint64_t stamp;
	uint32_t seq;
	uint8_t has_message, is_reset, has_id;
	uint8_t line_len;
	char line[LINE_KEPT];
	char id[ID_MAX + 1];		/* of the event that is being read */
	char last_id[ID_MAX + 1];	/* of the last one that was complete */
};

/* ------------------------------------------------------------- options */

static const char *o_host = "127.0.0.1", *o_path = "/", *o_label = "";
static const char *o_channel = "bench", *o_pubhost = NULL, *o_pubpath = "/", *o_pubunix = NULL;
static const char *o_template = "@MSG@", *o_wshello = NULL, *o_ctype = "text/plain";
static const char *o_accept = NULL;
static int o_port = 8000, o_pubport = 0, o_mode = MODE_SSE, o_pub = PUB_REDIS;
static int o_n = 100, o_slow = 0, o_inflight = 128, o_window = 0, o_depth = 1;
static int o_channels = 0;	/* 0: one, and "%d" in the path is the connection's number */
static long o_m = 100, o_size = 200;
static int o_deflate;
static double o_reconnect = -1;	/* milliseconds; negative: a connection that ends is not made again */
static double o_rate = 0, o_settle = 1.0, o_drain = 5.0, o_conn_timeout = 60, o_seconds = 0;
static int pids[MAX_PIDS], n_pids, aux_pids[MAX_PIDS], n_aux;
static int own_pids[3 * MAX_PIDS + 1], n_own;	/* all that belongs to the run, this process included */

/* --------------------------------------------------------------- state */

static struct conn *conns;
static int ep, n_streaming, n_failed, n_closed, n_readers;
static int n_channels = 1, *channel_readers;
static char *rbuf;
static uint64_t deliveries, duplicated, out_of_order, bytes_in, recv_calls, ws_frames, ws_inflated, foreign;
static uint32_t *msg_count;	/* deliveries of each message, for the window */
static uint32_t completed;	/* messages that every reader has (in order) */
static uint64_t *msg_stamp, *msg_last;	/* of each message: when it was sent, when the last reader had it */
static uint64_t last_delivery;
static uint64_t expected;	/* deliveries still possible: of each reader the messages of its channel */
static int publishing;
static uint32_t reconnects, refusals, resets, n_away;
static uint64_t away_max, away_sum;	/* from a cut to the next head, ns */
static uint64_t away_since, storm_max;	/* all that are away together: first cut to last return, ns */
static uint64_t next_due = UINT64_MAX;

static void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* ------------------------------------------- latency histogram (log-linear) */

#define SUB_BITS 6		/* 64 steps per power of two: < 1.6 % error */
static uint64_t hist[64 << SUB_BITS], hist_n, hist_max;

static void hist_add(uint64_t v)
{
	unsigned i;
	if (v > hist_max)
		hist_max = v;
	if (v < (1u << SUB_BITS)) {
		i = v;
	} else {
		int top = 63 - __builtin_clzll(v);
		i = ((top - SUB_BITS + 1) << SUB_BITS) + ((v >> (top - SUB_BITS)) & ((1u << SUB_BITS) - 1));
	}
	hist[i]++;
	hist_n++;
}

static double hist_ms(double q)
{
	uint64_t want = (uint64_t)(q * hist_n), sum = 0;
	unsigned i;
	if (!hist_n)
		return 0;
	for (i = 0; i < (64u << SUB_BITS); i++) {
		sum += hist[i];
		if (sum > want || sum == hist_n)
			break;
	}
	if (i < (1u << SUB_BITS))
		return i / 1e6;
	int sh = (i >> SUB_BITS) - 1;
	return (double)(((uint64_t)(i & ((1u << SUB_BITS) - 1)) + (1u << SUB_BITS)) << sh) / 1e6;
}

/* ------------------------------------------ the server's memory and CPU time */

/* PIDS and all their descendants, from /proc; returns how many */
static int proc_tree(const int *roots, int n_roots, int *out, int max)
{
	static int pid[32768], ppid[32768];
	int n = 0, n_out = 0, i, j, added;
	DIR *d = opendir("/proc");
	struct dirent *e;
	while (d && (e = readdir(d)) && n < 32768) {
		char path[300], buf[512], *p;
		FILE *f;
		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		snprintf(path, sizeof path, "/proc/%s/stat", e->d_name);
		if (!(f = fopen(path, "r")))
			continue;
		if (fgets(buf, sizeof buf, f) && (p = strrchr(buf, ')'))) {
			pid[n] = atoi(e->d_name);
			if (sscanf(p + 1, " %*c %d", &ppid[n]) == 1)
				n++;
		}
		fclose(f);
	}
	if (d)
		closedir(d);
	for (i = 0; i < n_roots && n_out < max; i++)
		out[n_out++] = roots[i];
	do {
		added = 0;
		for (i = 0; i < n; i++) {
			int child = 0, known = 0;
			for (j = 0; j < n_out; j++) {
				child |= out[j] == ppid[i];
				known |= out[j] == pid[i];
			}
			if (child && !known && n_out < max) {
				out[n_out++] = pid[i];
				added = 1;
			}
		}
	} while (added);
	return n_out;
}

/* summed Pss of the tree in bytes (VmRSS where smaps_rollup is unreadable) */
static double tree_pss(const int *roots, int n_roots)
{
	int tree[1024], n = proc_tree(roots, n_roots, tree, 1024), i;
	double total = 0;
	for (i = 0; i < n; i++) {
		char path[64], line[256];
		double kb = -1;
		FILE *f;
		snprintf(path, sizeof path, "/proc/%d/smaps_rollup", tree[i]);
		if ((f = fopen(path, "r"))) {
			while (fgets(line, sizeof line, f))
				if (sscanf(line, "Pss: %lf", &kb) == 1)
					break;
			fclose(f);
		}
		if (kb < 0) {
			snprintf(path, sizeof path, "/proc/%d/status", tree[i]);
			if ((f = fopen(path, "r"))) {
				while (fgets(line, sizeof line, f))
					if (sscanf(line, "VmRSS: %lf", &kb) == 1)
						break;
				fclose(f);
			}
		}
		if (kb > 0)
			total += kb * 1024;
	}
	return total;
}

/* CPU seconds of the tree: per-thread nanoseconds (schedstat) where the kernel
 * keeps them, else the tick counts of /proc/PID/stat */
static double tree_cpu(const int *roots, int n_roots)
{
	int tree[1024], n = proc_tree(roots, n_roots, tree, 1024), i;
	double total = 0;
	for (i = 0; i < n; i++) {
		char path[400], buf[512], *p;
		struct dirent *e;
		unsigned long ut, st;
		double ns_sum = 0;
		int have = 0;
		DIR *d;
		FILE *f;
		snprintf(path, sizeof path, "/proc/%d/task", tree[i]);
		if ((d = opendir(path))) {
			while ((e = readdir(d))) {
				double ns;
				if (e->d_name[0] == '.')
					continue;
				snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", tree[i], e->d_name);
				if (!(f = fopen(path, "r")))
					continue;
				if (fscanf(f, "%lf", &ns) == 1) {
					ns_sum += ns;
					have = 1;
				}
				fclose(f);
			}
			closedir(d);
		}
		if (have) {
			total += ns_sum / 1e9;
			continue;
		}
		snprintf(path, sizeof path, "/proc/%d/stat", tree[i]);
		if (!(f = fopen(path, "r")))
			continue;
		if (fgets(buf, sizeof buf, f) && (p = strrchr(buf, ')')) &&
		    sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &ut, &st) == 2)
			total += (double)(ut + st) / sysconf(_SC_CLK_TCK);
		fclose(f);
	}
	return total;
}

static double self_cpu(void)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* busy CPU seconds of the whole machine, to show what else was running */
static double machine_cpu(void)
{
	unsigned long long u = 0, n = 0, s = 0, id, io, irq = 0, sirq = 0;
	FILE *f = fopen("/proc/stat", "r");
	if (f) {
		if (fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu", &u, &n, &s, &id, &io, &irq, &sirq) != 7)
			u = n = s = irq = sirq = 0;
		fclose(f);
	}
	return (double)(u + n + s + irq + sirq) / sysconf(_SC_CLK_TCK);
}

/* ------------------------------------------------------- receiving messages */

static int hexval[256];

static int parse_hex(const char *p, int n, uint64_t *out)
{
	uint64_t v = 0;
	while (n--) {
		int h = hexval[(unsigned char)*p++];
		if (h < 0)
			return -1;
		v = v << 4 | h;
	}
	*out = v;
	return 0;
}

static int channel_of(const struct conn *c)
{
	return (c - conns) % n_channels;
}

/* how many of the first M messages go to a channel */
static uint32_t messages_of(int channel, uint32_t m)
{
	return m > (uint32_t)channel ? (m - channel - 1) / n_channels + 1 : 0;
}

/* one message arrived on C: verify its sequence number, take its latency */
static void deliver(struct conn *c, uint32_t seq, uint64_t stamp, uint64_t now)
{
	if (!publishing || seq >= (uint32_t)o_m || (int)(seq % n_channels) != channel_of(c)) {
		foreign++;
		return;
	}
	if (seq == c->next && !c->seen) {	/* the usual case */
		c->next += n_channels;
	} else {
		if (!c->seen) {
			uint32_t i;
			if (!(c->seen = calloc(1, o_m / 8 + 1)))
				die("out of memory");
			for (i = 0; i < c->next; i++)
				c->seen[i >> 3] |= 1 << (i & 7);
		}
		if (c->seen[seq >> 3] & (1 << (seq & 7))) {
			duplicated++;
			return;
		}
		c->seen[seq >> 3] |= 1 << (seq & 7);
		if (seq < c->next)	/* a later one came before it */
			out_of_order++;
		else
			c->next = seq + n_channels;
	}
	c->got++;
	deliveries++;
	last_delivery = now;
	hist_add(now > stamp ? now - stamp : 0);
	msg_stamp[seq] = stamp;
	msg_last[seq] = now;
	if (++msg_count[seq] >= (uint32_t)channel_readers[seq % n_channels])
		while (completed < (uint32_t)o_m
		       && msg_count[completed] >= (uint32_t)channel_readers[completed % n_channels])
			completed++;
}

/* look for stamps in P[0..N); what is cut at the end waits in c->carry */
static void scan(struct conn *c, char *p, size_t n, uint64_t now)
{
	char *end = p + n;
	uint64_t seq, stamp;
	if (c->carry_len) {
		char tmp[STAMP_LEN];
		size_t need = STAMP_LEN - c->carry_len;
		if (n < need) {
			memcpy(c->carry + c->carry_len, p, n);
			c->carry_len += n;
			return;
		}
		memcpy(tmp, c->carry, c->carry_len);
		memcpy(tmp + c->carry_len, p, need);
		c->carry_len = 0;
		if (!parse_hex(tmp + 1, 8, &seq) && !parse_hex(tmp + 9, 16, &stamp) && tmp[25] == ';') {
			deliver(c, seq, stamp, now);
			p += need;
		}
	}
	while (p < end && (p = memchr(p, MARK, end - p))) {
		if (end - p < STAMP_LEN) {
			c->carry_len = end - p;
			memcpy(c->carry, p, c->carry_len);
			return;
		}
		if (!parse_hex(p + 1, 8, &seq) && !parse_hex(p + 9, 16, &stamp) && p[25] == ';') {
			deliver(c, seq, stamp, now);
			p += STAMP_LEN;
		} else {
			p++;
		}
	}
}

static void sse_line(struct conn *c, const char *p, size_t n, uint64_t now)
{
	struct sse *s = c->sse;
	if (n && p[n - 1] == '\r')
		n--;
	if (!n) {		/* the event is complete */
		if (s->has_id)
			memcpy(s->last_id, s->id, sizeof s->id);
		if (s->is_reset)
			resets++;
		else if (s->has_message)
			deliver(c, s->seq, s->stamp, now);
		s->has_id = s->is_reset = s->has_message = 0;
	} else if (n >= 3 && !memcmp(p, "id:", 3)) {
		int space = n > 3 && p[3] == ' ';
		if (n - 3 - space > ID_MAX)
			die("an id is longer than %d bytes", ID_MAX);
		memcpy(s->id, p + 3 + space, n - 3 - space);
		s->id[n - 3 - space] = 0;
		s->has_id = 1;
	} else if (n == 12 && !memcmp(p, "event: reset", 12)) {
		s->is_reset = 1;
	} else if (n >= 5 && !memcmp(p, "data:", 5)) {
		const char *end = p + n, *m = p;
		uint64_t seq;
		while ((m = memchr(m, MARK, end - m)) && end - m >= STAMP_LEN) {
			if (!parse_hex(m + 1, 8, &seq) && !parse_hex(m + 9, 16, &s->stamp) && m[25] == ';') {
				s->seq = seq;
				s->has_message = 1;
				break;
			}
			m++;
		}
	}
}

/* read P[0..N) as lines; of one that is cut at the end its beginning waits */
static void sse_walk(struct conn *c, const char *p, size_t n, uint64_t now)
{
	struct sse *s = c->sse;
	const char *end = p + n, *e;
	while (p < end) {
		size_t k;
		e = memchr(p, '\n', end - p);
		if (e && !s->line_len) {
			sse_line(c, p, e - p, now);
			p = e + 1;
			continue;
		}
		k = (e ? e : end) - p;
		if (k > (size_t)LINE_KEPT - s->line_len)
			k = LINE_KEPT - s->line_len;
		memcpy(s->line + s->line_len, p, k);
		s->line_len += k;
		if (!e)
			return;
		k = s->line_len;
		s->line_len = 0;
		sse_line(c, s->line, k, now);
		p = e + 1;
	}
}

/* send one masked client frame (mask 0: the payload travels as it is) */
static void ws_send(struct conn *c, int opcode, const char *data, size_t n)
{
	unsigned char f[2 + 4 + 125];
	if (n > 125)
		n = 125;
	f[0] = 0x80 | opcode;
	f[1] = 0x80 | n;
	memset(f + 2, 0, 4);
	memcpy(f + 6, data, n);
	if (send(c->fd, f, 6 + n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;
}

/* keep a part of a compressed frame; pass the message to scan() when it is complete */
static void ws_unpack(struct conn *c, const char *p, size_t n, int is_last, uint64_t now)
{
	static z_stream z;
	static int is_ready;
	static char *text;
	if (!(c->ws_packed = realloc(c->ws_packed, c->ws_packed_len + n + 4)))
		die("out of memory");
	memcpy(c->ws_packed + c->ws_packed_len, p, n);
	c->ws_packed_len += n;
	if (!is_last)
		return;
	memcpy(c->ws_packed + c->ws_packed_len, "\0\0\377\377", 4);
	if (!text)
		text = malloc(RBUF);
	if (!text || (!is_ready ? inflateInit2(&z, -15) : inflateReset(&z)) != Z_OK)
		die("cannot inflate");
	is_ready = 1;
	z.next_in = (Bytef *)c->ws_packed;
	z.avail_in = c->ws_packed_len + 4;
	z.next_out = (Bytef *)text;
	z.avail_out = RBUF;
	if (inflate(&z, Z_SYNC_FLUSH) != Z_OK || z.avail_in)
		die("a compressed message cannot be inflated");
	ws_inflated++;
	scan(c, text, RBUF - z.avail_out, now);
	free(c->ws_packed);	/* an idle connection holds nothing */
	c->ws_packed = NULL;
	c->ws_packed_len = 0;
}

/* walk WebSocket frames, pass payloads to scan(), answer pings */
static void ws_walk(struct conn *c, char *p, size_t n, uint64_t now)
{
	while (n) {
		size_t hl, k;
		if (c->ws_left) {
			k = n < c->ws_left ? n : c->ws_left;
			if (c->ws_head[0] & WS_RSV1)
				ws_unpack(c, p, k, k == c->ws_left, now);
			else if ((c->ws_head[0] & 0x0f) <= 2)
				scan(c, p, k, now);
			p += k;
			n -= k;
			if (!(c->ws_left -= k))
				c->ws_hlen = 0;
			continue;
		}
		c->ws_head[c->ws_hlen++] = *p++;
		n--;
		if (c->ws_hlen < 2)
			continue;
		hl = 2 + ((c->ws_head[1] & 127) == 126 ? 2 : (c->ws_head[1] & 127) == 127 ? 8 : 0)
		    + (c->ws_head[1] & 128 ? 4 : 0);
		if (c->ws_hlen < hl)
			continue;
		if ((c->ws_head[1] & 127) < 126) {
			c->ws_left = c->ws_head[1] & 127;
		} else {
			int i, w = (c->ws_head[1] & 127) == 126 ? 2 : 8;
			for (c->ws_left = 0, i = 0; i < w; i++)
				c->ws_left = c->ws_left << 8 | c->ws_head[2 + i];
		}
		ws_frames++;
		if ((c->ws_head[0] & 0x0f) == 9)	/* ping; its payload is not echoed when cut */
			ws_send(c, 10, p, n < c->ws_left ? n : c->ws_left);
		if (!c->ws_left)
			c->ws_hlen = 0;
	}
}

/* ----------------------------------------------------------- connections */

static int dial(const char *host, int port, int src)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (inet_pton(AF_INET, host, &a.sin_addr) != 1)
		die("%s is not an IPv4 address", host);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (src > 0) {		/* another 127.0.0.x: its own range of ports */
		struct sockaddr_in s = { .sin_family = AF_INET };
		s.sin_addr.s_addr = htonl(INADDR_LOOPBACK + src);
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		if (bind(fd, (struct sockaddr *)&s, sizeof s))
			die("bind: %s", strerror(errno));
	}
	if (connect(fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

/* the connection has ended and is made again later */
static void conn_leave(struct conn *c)
{
	struct sse *s = c->sse;
	uint64_t now = now_ns();
	if (c->state == ST_STREAM)
		n_streaming--;
	if (c->fd >= 0)
		close(c->fd);
	free(c->head);
	c->fd = -1;
	c->head = NULL;
	c->state = ST_AWAY;
	s->line_len = s->has_id = s->is_reset = s->has_message = 0;	/* half an event is none */
	if (!s->cut_at) {
		s->cut_at = now;
		if (!n_away++)
			away_since = now;
	}
	s->due = now + (uint64_t)(o_reconnect * 1e6 * (1 + drand48()));
	if (s->due < next_due)
		next_due = s->due;
}

/* the response head of a connection that was made again has come */
static void conn_return(struct conn *c)
{
	uint64_t now = now_ns(), away = now - c->sse->cut_at;
	c->sse->cut_at = 0;
	reconnects++;
	away_sum += away;
	if (away > away_max)
		away_max = away;
	if (!--n_away && now - away_since > storm_max)
		storm_max = now - away_since;
}

static void conn_close(struct conn *c)
{
	if (c->state == ST_CLOSED)
		return;
	if (c->sse) {
		conn_leave(c);
		return;
	}
	if (c->state == ST_STREAM || c->state == ST_SLOW)
		n_closed++;
	else
		n_failed++;
	if (c->state == ST_STREAM && publishing) {	/* nothing more is awaited from it */
		n_readers--;
		channel_readers[channel_of(c)]--;
		expected -= messages_of(channel_of(c), o_m) - c->got;
	}
	c->state = ST_CLOSED;
	close(c->fd);
	free(c->head);
	free(c->ws_packed);
	c->head = c->ws_packed = NULL;
}

static void conn_open(struct conn *c, int i)
{
	struct epoll_event ev = { .events = EPOLLOUT, .data.ptr = c };
	if (!c->sse) {
		memset(c, 0, sizeof *c);
		c->slow = i < o_slow;
		c->next = channel_of(c);
		if (o_reconnect >= 0 && !c->slow && !(c->sse = calloc(1, sizeof *c->sse)))
			die("out of memory");
	}
	c->state = ST_CONNECTING;
	if ((c->fd = dial(o_host, o_port, i / CONNS_PER_SRC)) < 0) {
		if (c->sse) {
			conn_leave(c);
			return;
		}
		c->state = ST_CLOSED;
		n_failed++;
		return;
	}
	if (c->slow) {
		int sz = 4096;
		setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &sz, sizeof sz);
	}
	if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev))
		die("epoll_ctl: %s", strerror(errno));
}

static void conn_request(struct conn *c)
{
	char req[4096];
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
	const char *number = strstr(o_path, "%d");
	int n;
	if (number)
		n = snprintf(req, sizeof req, "GET %.*s%d%s HTTP/1.1\r\n", (int)(number - o_path), o_path,
			     o_channels ? channel_of(c) : (int)(c - conns), number + 2);
	else
		n = snprintf(req, sizeof req, "GET %s HTTP/1.1\r\n", o_path);
	n += snprintf(req + n, sizeof req - n, "Host: %s:%d\r\n", o_host, o_port);
	if (c->sse && c->sse->last_id[0])
		n += snprintf(req + n, sizeof req - n, "Last-Event-ID: %s\r\n", c->sse->last_id);
	if (o_mode == MODE_WS)
		n += snprintf(req + n, sizeof req - n, "Upgrade: websocket\r\nConnection: Upgrade\r\n"
			      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
			      "Origin: http://%s:%d\r\n%s\r\n", o_host, o_port,
			      o_deflate ? "Sec-WebSocket-Extensions: permessage-deflate; "
			      "server_no_context_takeover; client_no_context_takeover\r\n" : "");
	else
		n += snprintf(req + n, sizeof req - n, "Accept: %s\r\n\r\n",
			      o_accept ? o_accept : o_mode == MODE_SSE ? "text/event-stream" : "*/*");
	if (send(c->fd, req, n, MSG_NOSIGNAL) != n) {
		conn_close(c);
		return;
	}
	c->state = ST_HEAD;
	c->head = malloc(HEAD_MAX);
	c->head_len = 0;
	epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
}

static int dial_unix(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (strlen(path) >= sizeof a.sun_path)
		die("%s is too long for a Unix socket", path);
	strcpy(a.sun_path, path);
	if (connect(fd, (struct sockaddr *)&a, sizeof a))
		die("%s: %s", path, strerror(errno));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static void conn_payload(struct conn *c, char *p, size_t n, uint64_t now)
{
	if (o_mode == MODE_WS)
		ws_walk(c, p, n, now);
	else if (c->sse)
		sse_walk(c, p, n, now);
	else
		scan(c, p, n, now);
}

static void conn_head(struct conn *c, char *p, size_t n, uint64_t now)
{
	char *e;
	size_t k = n, before = c->head_len;
	if (c->head_len + k > HEAD_MAX - 1)
		k = HEAD_MAX - 1 - c->head_len;
	memcpy(c->head + c->head_len, p, k);
	c->head_len += k;
	c->head[c->head_len] = 0;
	if (!(e = strstr(c->head, "\r\n\r\n"))) {
		if (c->head_len >= HEAD_MAX - 1)
			conn_close(c);
		return;
	}
	if (strncmp(c->head + 8, o_mode == MODE_WS ? " 101" : " 200", 4)) {
		static int shown;
		if (!shown++)
			fprintf(stderr, "refused: %.100s\n", c->head);
		refusals++;
		conn_close(c);
		return;
	}
	if (c->sse) {
		*e = 0;
		if (strcasestr(c->head, "\ncontent-length:")) {	/* "come back later": a stream has no length */
			refusals++;
			conn_close(c);
			return;
		}
		*e = '\r';
		if (c->sse->cut_at)
			conn_return(c);
	}
	n_streaming++;
	c->state = ST_STREAM;
	if (o_wshello)
		ws_send(c, 1, o_wshello, strlen(o_wshello));
	k = e + 4 - c->head - before;	/* of P, the rest of the head */
	if (n > k)
		conn_payload(c, p + k, n - k, now);
	free(c->head);
	c->head = NULL;
	if (c->slow) {		/* from here on it never reads */
		c->state = ST_SLOW;
		epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL);
	}
}

static void conn_event(struct conn *c, uint32_t events)
{
	if (c->state == ST_CLOSED || c->state == ST_AWAY)
		return;
	if (c->state == ST_CONNECTING) {
		int err = 0;
		socklen_t l = sizeof err;
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &l);
		if (err || (events & EPOLLERR))
			conn_close(c);
		else
			conn_request(c);
		return;
	}
	/* one read a wake-up: level-triggered epoll comes back if there is more */
	ssize_t n = recv(c->fd, rbuf, RBUF, 0);
	recv_calls++;
	if (n <= 0) {
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
			conn_close(c);
		return;
	}
	bytes_in += n;
	if (c->state == ST_HEAD)
		conn_head(c, rbuf, n, now_ns());
	else
		conn_payload(c, rbuf, n, now_ns());
}

/* ------------------------------------------------------------- publishing */

static int pub_fd = -1, pub_ready, pub_out_armed;
static char *pub_buf;		/* bytes still to be written */
static size_t pub_len, pub_off, pub_cap;
static uint32_t published, answered, in_pipe;
static char pub_in[65536];
static size_t pub_in_len;
static int pub_errors;

static void pub_append(const char *p, size_t n)
{
	if (pub_off == pub_len)
		pub_off = pub_len = 0;
	if (pub_len + n > pub_cap) {
		pub_cap = (pub_len + n) * 2 + 65536;
		if (!(pub_buf = realloc(pub_buf, pub_cap)))
			die("out of memory");
	}
	memcpy(pub_buf + pub_len, p, n);
	pub_len += n;
}

static void pub_connect(void)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT, .data.ptr = NULL };
	if (o_pubunix)
		pub_fd = dial_unix(o_pubunix);
	else if ((pub_fd = dial(o_pubhost ? o_pubhost : "127.0.0.1", o_pubport, 0)) < 0)
		die("cannot reach the publish port %d", o_pubport);
	pub_ready = 0;
	pub_out_armed = 1;
	pub_in_len = 0;
	epoll_ctl(ep, EPOLL_CTL_ADD, pub_fd, &ev);
}

static void pub_flush(void)
{
	while (pub_ready && pub_off < pub_len) {
		ssize_t n = send(pub_fd, pub_buf + pub_off, pub_len - pub_off, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n <= 0)
			break;
		pub_off += n;
	}
	if (pub_ready && (pub_off < pub_len) != pub_out_armed) {
		struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
		pub_out_armed = pub_off < pub_len;
		if (pub_out_armed)
			ev.events |= EPOLLOUT;
		epoll_ctl(ep, EPOLL_CTL_MOD, pub_fd, &ev);
	}
}

/* NAME with the channel of a message in the place of "%d" */
static const char *numbered(const char *name, uint32_t seq)
{
	static char out[1024];
	const char *number = strstr(name, "%d");
	if (!o_channels || !number)
		return name;
	snprintf(out, sizeof out, "%.*s%u%s", (int)(number - name), name, seq % n_channels, number + 2);
	return out;
}

/* queue the next message, stamped now */
static void pub_message(void)
{
	static char *msg, *body, *req;
	const char *name;
	static size_t tpl_pre;
	const char *at = strstr(o_template, "@MSG@");
	size_t tpl_len = strlen(o_template), body_len;
	char head[1024];
	int n;
	if (!at)
		die("--template has no @MSG@");
	if (!msg) {
		msg = malloc(o_size + 1);
		memset(msg, 'x', o_size);
		body = malloc(o_size + tpl_len + 64);
		req = malloc(o_size + tpl_len + 2048);
		tpl_pre = at - o_template;
	}
	snprintf(head, sizeof head, "^%08x%016llx;", published, (unsigned long long)now_ns());
	memcpy(msg, head, STAMP_LEN);
	memcpy(body, o_template, tpl_pre);
	memcpy(body + tpl_pre, msg, o_size);
	memcpy(body + tpl_pre + o_size, at + 5, tpl_len - tpl_pre - 5);
	body_len = tpl_len - 5 + o_size;
	n = 0;
	if (o_pub == PUB_REDIS) {
		name = numbered(o_channel, published);
		n = sprintf(req, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%zu\r\n", strlen(name), name, body_len);
	} else if (o_pub == PUB_HTTP) {
		n = sprintf(req, "POST %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
			    numbered(o_pubpath, published), o_pubhost ? o_pubhost : "127.0.0.1", o_pubport, o_ctype,
			    body_len);
	}
	memcpy(req + n, body, body_len);
	n += body_len;
	if (o_pub == PUB_REDIS) {
		memcpy(req + n, "\r\n", 2);
		n += 2;
	} else if (o_pub == PUB_LINE) {
		req[n++] = '\n';
	}
	pub_append(req, n);
	published++;
	in_pipe++;
}

/* drop one complete HTTP response from pub_in; 1: dropped, 2: and it closes */
static int http_response(void)
{
	char *e, *p;
	size_t total;
	int closes;
	pub_in[pub_in_len] = 0;
	if (!(e = strstr(pub_in, "\r\n\r\n")))
		return 0;
	*e = 0;
	closes = strcasestr(pub_in, "connection: close") != NULL || !strncmp(pub_in, "HTTP/1.0", 8);
	p = strcasestr(pub_in, "content-length:");
	if (pub_in[9] != '2') {
		if (!pub_errors++)
			fprintf(stderr, "publish failed: %.200s\n", pub_in);
	}
	if (p) {
		total = (e + 4 - pub_in) + strtoul(p + 15, NULL, 10);
	} else if (strcasestr(pub_in, "transfer-encoding: chunked")) {
		char *z = strstr(e + 2, "\r\n0\r\n\r\n");
		total = z ? (size_t)(z + 7 - pub_in) : pub_in_len + 1;
	} else {
		total = e + 4 - pub_in;
	}
	*e = '\r';
	if (pub_in_len < total)
		return 0;
	memmove(pub_in, pub_in + total, pub_in_len - total);
	pub_in_len -= total;
	return closes ? 2 : 1;
}

static void pub_event(uint32_t events)
{
	int r;
	if (!pub_ready && (events & EPOLLOUT))
		pub_ready = 1;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		ssize_t n = recv(pub_fd, pub_in + pub_in_len, sizeof pub_in - 1 - pub_in_len, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN)) {
			close(pub_fd);
			if (o_pub != PUB_HTTP)
				die("the publish connection was closed");
			in_pipe = 0;	/* the server closes after its answer */
			pub_connect();
			return;
		}
		if (n > 0)
			pub_in_len += n;
		if (o_pub == PUB_HTTP) {
			while ((r = http_response())) {
				answered++;
				if (in_pipe)
					in_pipe--;
				if (r == 2) {
					close(pub_fd);
					in_pipe = 0;
					pub_connect();
					break;
				}
			}
		} else {	/* redis answers ":<receivers>\r\n", a line server nothing */
			char *p;
			for (p = pub_in; (p = memchr(p, '\n', pub_in + pub_in_len - p)); p++) {
				answered++;
				in_pipe--;
			}
			if (pub_in_len && pub_in[0] == '-')
				die("redis: %.80s", pub_in);
			pub_in_len = 0;
		}
	}
	pub_flush();
}

/* may one more message be queued now? */
static int pub_allowed(void)
{
	if (published >= (uint32_t)o_m)
		return 0;
	if (o_window && published - completed >= (uint32_t)o_window)
		return 0;
	if (o_pub == PUB_HTTP && in_pipe >= (uint32_t)o_depth)
		return 0;
	if (o_pub != PUB_HTTP && pub_len - pub_off > 262144)
		return 0;	/* let the socket drain first */
	return 1;
}

/* ------------------------------------------------------------------- main */

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static void count_expected(void)
{
	int i;
	for (expected = deliveries, i = 0; i < o_n; i++)
		if (conns[i].state == ST_STREAM || conns[i].sse)
			expected += messages_of(channel_of(&conns[i]), o_m) - conns[i].got;
}

/* connect those whose time has come again */
static void make_again(void)
{
	uint64_t now = now_ns(), next = UINT64_MAX;
	int i;
	if (now < next_due)
		return;
	next_due = UINT64_MAX;
	for (i = 0; i < o_n; i++) {
		if (conns[i].state != ST_AWAY)
			continue;
		if (conns[i].sse->due <= now)
			conn_open(&conns[i], i);
		else if (conns[i].sse->due < next)
			next = conns[i].sse->due;
	}
	if (next < next_due)
		next_due = next;
}

static void loop_once(int timeout_ms)
{
	static struct epoll_event ev[MAX_EVENTS];
	int i, n;
	if (next_due != UINT64_MAX) {
		make_again();
		if (timeout_ms > 5)
			timeout_ms = 5;
	}
	n = epoll_wait(ep, ev, MAX_EVENTS, timeout_ms);
	for (i = 0; i < n; i++) {
		if (ev[i].data.ptr == NULL) {
			pub_event(ev[i].events);
		} else if (ev[i].data.ptr != (void *)&ep) {	/* &ep: the rate timer, */
			conn_event(ev[i].data.ptr, ev[i].events);	/* it only wakes us */
		}
	}
}

static void parse_hostport(const char *s, const char **host, int *port, const char **path)
{
	char *d = strdup(strncmp(s, "http://", 7) ? s : s + 7), *p;
	if ((p = strchr(d, '/'))) {
		if (path)
			*path = strdup(p);
		*p = 0;
	}
	if ((p = strchr(d, ':'))) {
		*port = atoi(p + 1);
		*p = 0;
	}
	if (*d)
		*host = strcmp(d, "localhost") ? d : "127.0.0.1";
}

static void parse_redis(const char *s)
{
	if (!strncmp(s, "unix:", 5))
		o_pubunix = s + 5;
	else
		parse_hostport(s, &o_pubhost, &o_pubport, NULL);
}

static void usage(void)
{
	fputs("usage: fanout [options]   (README.md explains them)\n"
	      "  --url URL --mode sse|ws|raw -n CONNS -m MESSAGES -s SIZE -r RATE --seconds SEC\n"
	      "  --redis HOST:PORT|unix:PATH --channel NAME | --post URL | --line HOST:PORT\n"
	      "  --template TEXT --ctype TYPE --depth D --window W --settle SEC --drain SEC\n"
	      "  --reconnect MS --slow K --inflight C --accept TYPE --ws-hello TEXT --connect-timeout SEC\n"
	      "  --deflate --channels K --pid PID --aux-pid PID --own-pid PID --label TEXT\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option lo[] = {
		{"url", 1, 0, 'u'}, {"mode", 1, 0, 'M'}, {"conns", 1, 0, 'n'}, {"messages", 1, 0, 'm'},
		{"size", 1, 0, 's'}, {"rate", 1, 0, 'r'}, {"redis", 1, 0, 'R'}, {"channel", 1, 0, 'c'},
		{"post", 1, 0, 'P'}, {"line", 1, 0, 'L'}, {"template", 1, 0, 't'}, {"ctype", 1, 0, 'T'},
		{"depth", 1, 0, 'd'}, {"window", 1, 0, 'w'}, {"settle", 1, 0, 'S'}, {"drain", 1, 0, 'D'},
		{"slow", 1, 0, 'k'}, {"inflight", 1, 0, 'i'}, {"accept", 1, 0, 'A'}, {"ws-hello", 1, 0, 'H'},
		{"pid", 1, 0, 'p'}, {"aux-pid", 1, 0, 'a'}, {"label", 1, 0, 'l'}, {"reconnect", 1, 0, 'B'},
		{"connect-timeout", 1, 0, 'C'}, {"channels", 1, 0, 'K'}, {"own-pid", 1, 0, 'o'},
		{"seconds", 1, 0, 'X'}, {"deflate", 0, 0, 'Z'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0}
	};
	int ch, i, opened = 0, timer;
	struct rlimit rl;

	while ((ch = getopt_long(argc, argv, "n:m:s:r:h", lo, NULL)) != -1)
		switch (ch) {
		case 'u': parse_hostport(optarg, &o_host, &o_port, &o_path); break;
		case 'M': o_mode = !strcmp(optarg, "ws") ? MODE_WS : !strcmp(optarg, "raw") ? MODE_RAW : MODE_SSE; break;
		case 'n': o_n = atoi(optarg); break;
		case 'm': o_m = atol(optarg); break;
		case 's': o_size = atol(optarg); break;
		case 'r': o_rate = atof(optarg); break;
		case 'R': o_pub = PUB_REDIS; parse_redis(optarg); break;
		case 'c': o_channel = optarg; break;
		case 'P': o_pub = PUB_HTTP; parse_hostport(optarg, &o_pubhost, &o_pubport, &o_pubpath); break;
		case 'L': o_pub = PUB_LINE; parse_hostport(optarg, &o_pubhost, &o_pubport, NULL); break;
		case 't': o_template = optarg; break;
		case 'T': o_ctype = optarg; break;
		case 'd': o_depth = atoi(optarg); break;
		case 'w': o_window = atoi(optarg); break;
		case 'S': o_settle = atof(optarg); break;
		case 'D': o_drain = atof(optarg); break;
		case 'k': o_slow = atoi(optarg); break;
		case 'i': o_inflight = atoi(optarg); break;
		case 'A': o_accept = optarg; break;
		case 'H': o_wshello = optarg; break;
		case 'C': o_conn_timeout = atof(optarg); break;
		case 'p': if (n_pids < MAX_PIDS) pids[n_pids++] = atoi(optarg); break;
		case 'a': if (n_aux < MAX_PIDS) aux_pids[n_aux++] = atoi(optarg); break;
		case 'o': if (n_own < MAX_PIDS) own_pids[n_own++] = atoi(optarg); break;
		case 'X': o_seconds = atof(optarg); break;
		case 'K': o_channels = atoi(optarg); break;
		case 'Z': o_deflate = 1; break;
		case 'l': o_label = optarg; break;
		case 'B': o_reconnect = atof(optarg); break;
		default: usage();
		}
	if (optind != argc || o_n < 1 || o_slow > o_n || o_m < 0 || o_channels < 0
	    || (o_reconnect >= 0 && o_mode != MODE_SSE))
		usage();
	if (o_channels)
		n_channels = o_channels;
	if (o_size < STAMP_LEN)
		o_size = STAMP_LEN;
	if (!o_pubport)
		o_pubport = o_pub == PUB_REDIS ? 6379 : 80;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	if ((rlim_t)o_n + 32 > rl.rlim_cur)
		die("%d connections do not fit in the limit of %lu open files", o_n, (unsigned long)rl.rlim_cur);

	memset(hexval, -1, sizeof hexval);
	for (i = 0; i < 16; i++) {
		hexval[(int)"0123456789abcdef"[i]] = i;
		hexval[(int)"0123456789ABCDEF"[i]] = i;
	}
	conns = calloc(o_n, sizeof *conns);
	msg_count = calloc(o_m + 1, sizeof *msg_count);
	msg_stamp = calloc(o_m + 1, sizeof *msg_stamp);
	msg_last = calloc(o_m + 1, sizeof *msg_last);
	channel_readers = calloc(n_channels, sizeof *channel_readers);
	rbuf = malloc(RBUF);
	if (!conns || !msg_count || !msg_stamp || !msg_last || !channel_readers || !rbuf
	    || (ep = epoll_create1(EPOLL_CLOEXEC)) < 0)
		die("cannot start");
	for (i = 0; i < n_pids; i++)
		own_pids[n_own++] = pids[i];
	for (i = 0; i < n_aux; i++)
		own_pids[n_own++] = aux_pids[i];
	own_pids[n_own++] = getpid();

	/* 1. connect: at most --inflight handshakes at a time */
	double pss0 = n_pids ? tree_pss(pids, n_pids) : 0, cpu0 = tree_cpu(pids, n_pids);
	uint64_t t0 = now_ns(), t_stall = t0;
	int settled = 0;
	while (n_streaming + n_failed < o_n) {
		while (opened < o_n && opened - n_streaming - n_failed < o_inflight) {
			conn_open(&conns[opened], opened);
			opened++;
		}
		loop_once(100);
		if (n_streaming + n_failed != settled) {
			settled = n_streaming + n_failed;
			t_stall = now_ns();
		}
		if (now_ns() - t_stall > 10e9 || now_ns() - t0 > o_conn_timeout * 1e9)
			break;	/* the server takes no more */
	}
	double connect_s = (now_ns() - t0) / 1e9, connect_cpu = tree_cpu(pids, n_pids) - cpu0;
	int connected = n_streaming;

	/* 2. settle, then the memory of idle connections */
	uint64_t t1 = now_ns();
	while (now_ns() - t1 < o_settle * 1e9)
		loop_once(20);
	double pss1 = n_pids ? tree_pss(pids, n_pids) : 0;
	for (i = 0; i < opened; i++)
		if (conns[i].state == ST_STREAM || conns[i].sse) {
			n_readers++;
			channel_readers[channel_of(&conns[i])]++;
		}
	count_expected();
	int before_publish_closed = n_closed;

	/* 3. publish and receive */
	double srv_cpu0 = tree_cpu(pids, n_pids), aux_cpu0 = tree_cpu(aux_pids, n_aux);
	double own_cpu0 = self_cpu(), run_cpu0 = tree_cpu(own_pids, n_own), mach_cpu0 = machine_cpu();
	uint64_t bytes0 = bytes_in, calls0 = recv_calls, start = 0, deadline;
	publishing = 1;
	if (o_m && n_readers) {
		pub_connect();
		while (!pub_ready)
			loop_once(100);
	}
	if ((timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) < 0)
		die("timerfd: %s", strerror(errno));
	struct epoll_event tev = { .events = EPOLLIN | EPOLLET, .data.ptr = (void *)&ep };
	epoll_ctl(ep, EPOLL_CTL_ADD, timer, &tev);
	start = last_delivery = now_ns();
	while (n_readers && deliveries < expected) {
		uint64_t now = now_ns();
		int k = 0;
		/* a burst is kept short so that receiving is never starved */
		while (pub_allowed() && k++ < 256) {
			if (o_rate > 0) {
				uint64_t due = start + (uint64_t)(published * 1e9 / o_rate);
				if (due > now) {
					struct itimerspec it = { .it_value = { due / 1000000000, due % 1000000000 } };
					timerfd_settime(timer, TFD_TIMER_ABSTIME, &it, NULL);
					break;
				}
			}
			pub_message();
			last_delivery = now;
		}
		pub_flush();
		if (o_seconds && now - start > o_seconds * 1e9 && published < (uint32_t)o_m) {
			o_m = published;	/* that is all */
			count_expected();
		}
		deadline = last_delivery + (uint64_t)(o_drain * 1e9);
		if (now_ns() > deadline && (o_rate <= 0 || published == (uint32_t)o_m))
			break;	/* nothing arrived for --drain seconds */
		loop_once(pub_allowed() && o_rate <= 0 ? 0 : 20);
	}
	double elapsed = (last_delivery - start) / 1e9;
	double srv_cpu = tree_cpu(pids, n_pids) - srv_cpu0, aux_cpu = tree_cpu(aux_pids, n_aux) - aux_cpu0;
	double own_cpu = self_cpu() - own_cpu0;
	double other_cpu = machine_cpu() - mach_cpu0 - (tree_cpu(own_pids, n_own) - run_cpu0);
	double other_share = other_cpu / ((now_ns() - start) / 1e9) / sysconf(_SC_NPROCESSORS_ONLN);
	double pss2 = n_pids ? tree_pss(pids, n_pids) : 0;

	/* a short wait shows messages delivered twice at the very end */
	t1 = now_ns();
	while (o_m && now_ns() - t1 < 200000000)
		loop_once(20);

	/* 4. report */
	uint64_t lost = 0, incomplete = 0;
	for (i = 0; i < opened; i++)
		if (!conns[i].slow && (conns[i].state == ST_STREAM || conns[i].sse || conns[i].got)) {
			uint32_t due = messages_of(channel_of(&conns[i]), published);
			lost += due - conns[i].got;
			incomplete += conns[i].got != due;
		}
	uint64_t *lasts = calloc(published + 1, sizeof *lasts);	/* from the stamp to the last reader */
	uint32_t n_lasts = 0, seq;
	for (seq = 0; lasts && seq < published; seq++)
		if (msg_count[seq])
			lasts[n_lasts++] = msg_last[seq] - msg_stamp[seq];
	qsort(lasts, n_lasts, sizeof *lasts, by_value);
	if (o_reconnect >= 0)	/* away at the end */
		for (i = 0; i < opened; i++)
			n_closed += conns[i].sse && conns[i].state != ST_STREAM;
	static const char *modes[] = { "sse", "ws", "raw" };
	printf("{\"label\": \"%s\", \"mode\": \"%s\", \"wanted\": %d, \"connections\": %d, \"failed\": %d, "
	       "\"slow\": %d, \"closed_early\": %d, \"connect_s\": %.3f, \"connect_rate\": %.0f, "
	       "\"connect_server_cpu_s\": %.3f, ",
	       o_label, modes[o_mode], o_n, connected, n_failed + (o_n - opened), o_slow, before_publish_closed,
	       connect_s, connect_s > 0 ? connected / connect_s : 0, connect_cpu);
	printf("\"messages\": %u, \"size\": %ld, \"rate\": %g, \"window\": %d, \"publish_errors\": %d, "
	       "\"deliveries\": %llu, \"lost\": %llu, \"conns_with_loss\": %llu, \"duplicated\": %llu, "
	       "\"out_of_order\": %llu, \"foreign\": %llu, \"closed\": %d, ",
	       published, o_size, o_rate, o_window, pub_errors, (unsigned long long)deliveries,
	       (unsigned long long)lost, (unsigned long long)incomplete, (unsigned long long)duplicated,
	       (unsigned long long)out_of_order, (unsigned long long)foreign, n_closed);
	printf("\"elapsed_s\": %.3f, \"deliveries_per_s\": %.0f, \"p50_ms\": %.3f, \"p90_ms\": %.3f, "
	       "\"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": %.3f, \"last_p50_ms\": %.3f, "
	       "\"bytes\": %llu, \"recv_calls\": %llu, \"ws_frames\": %llu, "
	       "\"ws_inflated\": %llu, ",
	       elapsed, elapsed > 0 ? deliveries / elapsed : 0, hist_ms(.5), hist_ms(.9), hist_ms(.99),
	       hist_ms(.999), hist_max / 1e6, n_lasts ? lasts[n_lasts / 2] / 1e6 : 0,
	       (unsigned long long)(bytes_in - bytes0),
	       (unsigned long long)(recv_calls - calls0), (unsigned long long)ws_frames,
	       (unsigned long long)ws_inflated);
	if (o_reconnect >= 0)
		printf("\"reconnects\": %u, \"refusals\": %u, \"resets\": %u, \"reconnect_max_ms\": %.1f, "
		       "\"reconnect_mean_ms\": %.1f, \"storm_ms\": %.1f, ",
		       reconnects, refusals, resets, away_max / 1e6,
		       reconnects ? away_sum / 1e6 / reconnects : 0, storm_max / 1e6);
	printf("\"server_cpu_s\": %.3f, \"deliveries_per_server_cpu_s\": %.0f, \"aux_cpu_s\": %.3f, "
	       "\"client_cpu_s\": %.3f, \"other_cpu_s\": %.2f, \"other_share\": %.3f, \"server_pss_before\": %.0f, "
	       "\"server_pss_idle\": %.0f, \"server_pss_after\": %.0f, \"bytes_per_idle_conn\": %.0f}\n",
	       srv_cpu, srv_cpu > 0 ? deliveries / srv_cpu : 0, aux_cpu, own_cpu,
	       other_cpu, other_share, pss0, pss1, pss2,
	       n_pids && connected ? (pss1 - pss0) / connected : 0);
	return lost || duplicated || out_of_order || n_closed || connected < o_n ? 1 : 0;
}
