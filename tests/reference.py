"""Slow and obvious: the objective and the queue with for loops, `math` and Python numbers, to test the fast code by."""

import itertools
import math


def log_sum_exp(logits):
    """log of the sum of exp of a list of numbers; -inf for an empty one."""
    if not logits:
        return -math.inf
    top = max(logits)
    return top + math.log(math.fsum(math.exp(x - top) for x in logits))


def _mean_term(anchors, tau, form, min_probability, reduction):
    """Mean InfoNCE term of one rank; 0 without one.

    anchors: one pair (cosines of the positives, cosines of the negatives) an anchor; form: "in", "out" or "all".
    reduction "anchors": of the means of each anchor's terms, where any is left in.
    """
    per_anchor = []
    for positive, negative in anchors:
        positive = [x / tau for x in positive]
        negative = [x / tau for x in negative]
        terms = []
        if form == "all":
            if positive:
                per_anchor.append([math.fsum(log_sum_exp(positive + negative) - x for x in positive) / len(positive)])
            continue
        if form == "in" and positive:
            terms.append(log_sum_exp(positive + negative) - log_sum_exp(positive))
        elif form == "out":
            terms += [log_sum_exp([x, *negative]) - x for x in positive]
        if min_probability > 0:
            terms = [t for t in terms if t < -math.log(min_probability)]
        per_anchor.append(terms)
    if reduction == "anchors":
        terms = [math.fsum(terms) / len(terms) for terms in per_anchor if terms]
    else:
        terms = [t for terms in per_anchor for t in terms]
    return math.fsum(terms) / len(terms) if terms else 0.0


def _form(rank, variant):
    first, farther = {"out_in": ("out", "in"), "all_in": ("all", "in")}.get(variant, (variant, variant))
    return farther if rank else first


def rince(  # noqa: PLR0913
    query,
    key,
    labels,
    bank,
    bank_labels,
    class_similarity,
    min_tau,
    max_tau,
    variant,
    cumulative=False,
    min_probability=0.0,
    reduction="pairs",
    positives="separate",
):
    """The loss from the equations of the paper; lists in, float out.

    query, key: N lists of D floats; labels: N class numbers; bank: K lists of D floats; bank_labels: K class numbers,
    -1 = empty; class_similarity: C lists of C floats.
    """

    entries = [[(_dot(q, m), b) for m, b in zip(bank, bank_labels, strict=True)] for q in query]
    own = [[_dot(q, k)] for q, k in zip(query, key, strict=True)]
    taus = min_tau, max_tau
    positives = "cumulative" if cumulative else positives
    return _over_ranks(labels, own, entries, class_similarity, taus, variant, positives, min_probability, reduction)


def _dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _over_ranks(  # noqa: PLR0913
    labels, own, entries, class_similarity, taus, variant, positives, min_probability, reduction
):
    """The mean over the ranks that occur. own: of each anchor, the cosine of its key, or none; entries: of each, the
    cosine and label of everything else.
    """

    def similarity(a, b):
        return 0.0 if b < 0 else class_similarity[a][b]

    levels = sorted({s for row in class_similarity for s in row if s > 0}, reverse=True)
    occurring = [s for s in levels if any(s in class_similarity[y] for y in labels)]
    losses = []
    for i, level in enumerate(levels[:2] if positives == "cumulative" else levels):
        second, nested = positives == "cumulative" and i == 1, positives == "nested"
        if not (any(s < 1 for s in occurring) if second else level in occurring):
            continue
        anchors = []
        for y, key, others in zip(labels, own, entries, strict=True):
            positive, negative = [*key] if i == 0 or nested else [], []
            for cosine, b in others:
                s = similarity(y, b)
                if s > 0 if second else s >= level if nested else s == level:
                    positive.append(cosine)
                elif s == 0 if second else s < level:
                    negative.append(cosine)
            anchors.append((positive, negative))
        tau = taus[0] + (1 - level) * (taus[1] - taus[0])
        losses.append(_mean_term(anchors, tau, _form(i, variant), min_probability, reduction))
    return math.fsum(losses) / len(losses)


def rince_on_ranks(similarity, rank, taus, variant, min_probability=0.0, reduction="pairs"):
    """The loss on any rank matrix: N lists of K cosines, N lists of K ranks, R temperatures -> float.

    Ranks below 0 are not used, ranks of R and more are negatives; the mean is over the ranks seen in the matrix.
    """
    losses = []
    for i, tau in enumerate(taus):
        if not any(i in row for row in rank):
            continue
        anchors = []
        for cosines, ranks in zip(similarity, rank, strict=True):
            positive = [x for x, r in zip(cosines, ranks, strict=True) if r == i]
            negative = [x for x, r in zip(cosines, ranks, strict=True) if r > i]
            anchors.append((positive, negative))
        losses.append(_mean_term(anchors, tau, _form(i, variant), min_probability, reduction))
    return math.fsum(losses) / len(losses) if losses else 0.0


def rince_in_batch(query, key, labels, table, variant, cumulative, min_probability, reduction="pairs"):
    """The loss without a bank, temperatures 0.1 to 0.6: an anchor is compared with its own key and those of the others.

    key None: with the other queries alone.
    """
    n, own = len(query), [[_dot(q, k)] for q, k in zip(query, key, strict=True)] if key else [[]] * len(query)
    key = key or query
    entries = [[(_dot(query[i], key[j]), labels[j]) for j in range(n) if j != i] for i in range(n)]
    positives = "cumulative" if cumulative else "separate"
    return _over_ranks(labels, own, entries, table, (0.1, 0.6), variant, positives, min_probability, reduction)


def candidates(query, key, labels, bank, bank_labels):
    """Of each anchor, cosine and label of everything it is compared with: its key, and the entries, -1 = empty."""
    return [
        [(_dot(q, k), y), *((_dot(q, m), b) for m, b in zip(bank, bank_labels, strict=True))]
        for q, k, y in zip(query, key, labels, strict=True)
    ]


def candidates_in_batch(query, key, labels):
    """The same of a batch that is its own bank; key None: the other queries alone."""
    if key is None:
        n = range(len(query))
        return [[(_dot(query[i], query[j]), labels[j]) for j in n if j != i] for i in n]
    return [[(_dot(q, k), b) for k, b in zip(key, labels, strict=True)] for q in query]


def _mean(losses):
    return math.fsum(losses) / len(losses) if losses else 0.0


def supcon(labels, compared, relevant, tau):
    """L_out of Khosla et al. (2020), eq. 2. relevant(y, b): whether label b is a positive of y."""
    losses = []
    for y, others in zip(labels, compared, strict=True):
        positive = [s / tau for s, b in others if b >= 0 and relevant(y, b)]
        if positive:
            below = log_sum_exp([s / tau for s, _ in others])
            losses.append(-math.fsum(x - below for x in positive) / len(positive))
    return _mean(losses)


def himulcon(labels, compared, table, tau, enforce):
    """Zhang et al. (2022): levels are the distinct similarities, the finest first, with weights 2^(1 / l)."""
    levels = sorted({s for row in table for s in row if s > 0}, reverse=True)
    total, largest = 0.0, -math.inf
    for number, level in enumerate(levels, 1):
        term = supcon(labels, compared, lambda y, b, level=level: table[y][b] >= level, tau)
        largest = max(largest, term)
        total += 2 ** (1 / number) * (largest if enforce else term)
    return total / len(levels)


def cross_entropy_of_weights(labels, compared, weight, tau):
    """lse over a of s_a / tau - (1 / tau) sum of w_a s_a / sum of w_a; empty entries have weight 0."""
    losses = []
    for y, others in zip(labels, compared, strict=True):
        weights = [weight(y, b) if b >= 0 else 0.0 for _, b in others]
        if math.fsum(weights) > 0:
            near = math.fsum(w * s for w, (s, _) in zip(weights, others, strict=True)) / math.fsum(weights)
            losses.append(log_sum_exp([s / tau for s, _ in others]) - near / tau)
    return _mean(losses)


def xclr(labels, compared, table, tau, target_tau):
    """Sobal et al. (2024): targets are the softmax of similarities."""
    return cross_entropy_of_weights(labels, compared, lambda y, b: math.exp(table[y][b] / target_tau), tau)


def rank_n_contrast(labels, compared, distance, tau):
    """Zha et al. (2023), eq. 1. distance(y, b) of labels; an empty entry is farther than all, and no positive."""
    losses = []
    for y, others in zip(labels, compared, strict=True):
        far = [distance(y, b) if b >= 0 else math.inf for _, b in others]
        f = [-math.sqrt(max(2 - 2 * s, 1e-6)) / tau for s, _ in others]
        terms = []
        for d, x in zip(far, f, strict=True):
            if d < math.inf:
                terms.append(log_sum_exp([z for e, z in zip(far, f, strict=True) if e >= d]) - x)
        if terms:
            losses.append(_mean(terms))
    return _mean(losses)


def triplet(labels, compared, table, margin):
    """The hardest of each class, with the class's margin."""
    losses = []
    for y, others in zip(labels, compared, strict=True):
        own = [s for s, b in others if b >= 0 and table[y][b] == 1]
        other = [s + margin * (1 - table[y][b]) for s, b in others if b >= 0 and table[y][b] < 1]
        if own and other:
            losses.append(max(0.0, max(other) - min(own)))
    return _mean(losses)


def queue(size, pushes):
    """What a memory bank holds after some pushes, slot by slot; None where nothing was written.

    pushes: lists of items, the oldest first.
    """
    slots, pointer = [None] * size, 0
    for push in pushes:
        for item in push:
            slots[pointer] = item
            pointer += 1
            if pointer == size:
                pointer = 0
    return slots


def learning_rate(progress, base, epochs, cosine, decay_rate, decay_epochs, warm_epochs, warm_share=None):
    """The rate after `progress` epochs, written out case by case; epochs count from 1."""

    def at(epoch):
        if cosine:
            floor = base * decay_rate * decay_rate * decay_rate
            return floor + (base - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        rate = base
        for e in decay_epochs:
            if epoch > e:
                rate = rate * decay_rate
        return rate

    if progress < warm_epochs:
        share = progress / warm_epochs
        begin = 0.01 if warm_share is None else warm_share * base
        return (1 - share) * begin + share * at(warm_epochs)
    return at(int(progress) + 1)


def retrieval(features, labels, gallery, gallery_labels, topk):
    """R@k, AP and mAP of lists of vectors; see evaluation.retrieval_metrics for their meaning."""

    def unit(v):
        norm = math.sqrt(math.fsum(x * x for x in v))
        return [x / norm for x in v]

    queries, items = [unit(v) for v in features], [unit(v) for v in gallery]
    size = len(items)
    result = {f"R@{k}": 0.0 for k in topk}
    r_precision = map_at_r = 0.0
    mean_ap, precision, recall = 0.0, [0.0] * size, [0.0] * size
    for q, y in zip(queries, labels, strict=True):
        # single precision decides which similarities are equal; 1e-6 stands for that here
        scores = [round(math.fsum(a * b for a, b in zip(q, g, strict=True)), 6) for g in items]
        order = sorted(range(size), key=lambda j: -scores[j])
        hits = [gallery_labels[j] == y for j in order]
        relevant = sum(hits)
        r_precision += sum(hits[:relevant]) / relevant / len(queries)
        for place in range(relevant):
            if hits[place]:
                map_at_r += sum(hits[: place + 1]) / (place + 1) / relevant / len(queries)
        for k in topk:
            if any(hits[:k]):
                result[f"R@{k}"] += 1 / len(queries)
        for k in range(size):
            precision[k] += sum(hits[: k + 1]) / (k + 1) / len(queries)
            recall[k] += sum(hits[: k + 1]) / relevant / len(queries)
        for place in range(size):
            if hits[place]:
                end = max(p for p in range(size) if scores[order[p]] == scores[order[place]])
                mean_ap += sum(hits[: end + 1]) / (end + 1) / relevant / len(queries)
    rectangles = sum((recall[k] - recall[k - 1]) * precision[k] for k in range(1, size))
    area, before_recall, before_precision = 0.0, 0.0, precision[0]
    for p, r in zip(precision, recall, strict=True):
        area += (r - before_recall) * (p + before_precision) / 2
        before_recall, before_precision = r, p
    at_r = {"R-precision": r_precision, "MAP@R": map_at_r}
    return {**result, "AP": area, "AP-published": rectangles, "mAP": mean_ap, **at_r}


def other_class_map(features, labels, gallery, gallery_labels, groups, own=None):
    """mAP among the classes of a query's group, as if its own class were not in the gallery; lists of vectors.

    own: of each query the entry of the gallery that it is itself.
    """
    of_queries = []
    for i, (q, y) in enumerate(zip(features, labels, strict=True)):
        entries = [j for j, b in enumerate(gallery_labels) if b != y and (own is None or j != own[i])]
        scores = {j: round(_cosine(q, gallery[j]), 6) for j in entries}
        relevant = {j for j in entries if groups[gallery_labels[j]] == groups[y]}
        precisions = []
        for j in relevant:
            upto = [k for k in entries if scores[k] >= scores[j]]
            precisions.append(len([k for k in upto if k in relevant]) / len(upto))
        if relevant:
            of_queries.append(math.fsum(precisions) / len(relevant))
    return math.fsum(of_queries) / len(of_queries)


def confusion(counts):
    """Similarity from counts of true classes [row] taken for others [column]: of two classes, the wrong share."""
    n = len(counts)
    way = [[x / sum(row) for x in row] for row in counts]

    def wrong(i, j):
        mistaken, right = way[i][j] + way[j][i], way[i][i] + way[j][j]
        return mistaken / (mistaken + max(right, 2 / n))

    return [[1.0 if i == j else wrong(i, j) for j in range(n)] for i in range(n)]


def spearman(x, y):
    """Spearman's rho of two lists, ties by their mean rank."""

    def ranks(values):
        return [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]

    a, b = ranks(x), ranks(y)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    above = math.fsum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
    return above / math.sqrt(math.fsum((p - ma) ** 2 for p in a) * math.fsum((q - mb) ** 2 for q in b))


def mantel_exact(a, b, orders):
    """Rho over the pairs of two tables; the share of these orders of b's classes with one at least as far from 0."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    first = [a[i][j] for i, j in pairs]
    rho = spearman(first, [b[i][j] for i, j in pairs])
    of_orders = [spearman(first, [b[o[i]][o[j]] for i, j in pairs]) for o in orders]
    return rho, sum(abs(r) >= abs(rho) - 1e-9 for r in of_orders) / len(orders)


def overlap(a, b, k):
    """Mean share of the k most similar classes that two tables share, over every way to break the ties of each."""

    def ways(row, i):
        others = [c for c in range(len(row)) if c != i]
        sets = [s for s in itertools.combinations(others, k)]
        return [s for s in sets if min(row[c] for c in s) >= max((row[c] for c in others if c not in s), default=-9)]

    shares = []
    for i in range(len(a)):
        pairs = [len(set(x) & set(y)) / k for x in ways(a[i], i) for y in ways(b[i], i)]
        shares.append(sum(pairs) / len(pairs))
    return sum(shares) / len(shares)


def neighbor_accuracy(features, groups):
    """By level of groups (a list an image): share of the images, not alone there, whose nearest other is of theirs."""
    found = []
    for level in range(len(groups[0])):
        own = [g[level] for g in groups]
        right = []
        for i, x in enumerate(features):
            if own.count(own[i]) > 1:
                others = [j for j in range(len(features)) if j != i]
                right.append(own[max(others, key=lambda j: _cosine(x, features[j]))] == own[i])
        found.append(sum(right) / len(right) if right else None)
    return found


def rank_order(scores, ranks, values):
    """The measures of evaluation.rank_metrics for one query, each as its definition has it; those defined for it.

    scores, ranks: of each entry; values: similarity of each rank.
    """
    n, found = len(scores), {}
    for r in range(len(values) - 1):
        farther = min((x for x in ranks if x > r), default=None)  # the next rank that there is
        pairs = [(a, b) for a in range(n) for b in range(n) if ranks[a] == r and ranks[b] == farther]
        if pairs:
            right = [1.0 if scores[a] > scores[b] else 0.5 if scores[a] == scores[b] else 0.0 for a, b in pairs]
            found[f"AUROC {r}>{r + 1}"] = math.fsum(right) / len(pairs)
    gains = [values[r] for r in ranks]
    above = [sum(s > x for s in scores) for x in scores]  # entries before the ties of each
    equal = [sum(s == x for s in scores) for x in scores]
    discount = [1 / math.log2(k + 2) for k in range(n)]
    if sum(gains) > 0:
        gained = sum(g * sum(discount[a : a + e]) / e for g, a, e in zip(gains, above, equal, strict=True))
        best = sum(g * d for g, d in zip(sorted(gains, reverse=True), discount, strict=True))
        found["NDCG"] = gained / best
        total = 0.0
        for k in range(n):
            nearer = [j for j in range(n) if scores[j] >= scores[k]]
            total += sum(min(gains[j], gains[k]) for j in nearer) / len(nearer)
        found["H-AP"] = total / sum(gains)
        related = sum(g > 0 for g in gains)
        ideal = sorted(ranks)
        overlap = 0.0
        for k in range(1, related + 1):
            both = 0.0
            for r, value in enumerate(values):
                if value > 0:  # an entry lies among the first k for certain, or with its share of the ties' places
                    inside = sum(min(1.0, max(0.0, (k - above[j]) / equal[j])) for j in range(n) if ranks[j] == r)
                    both += min(inside, sum(x == r for x in ideal[:k]))
            overlap += both / k
        found["ASI"] = overlap / related
    others = [j for j in range(n) if ranks[j] > 0]
    if others:
        top = max(scores[j] for j in others)
        tied = [ranks[j] for j in others if scores[j] == top]
        found["nearest other"] = sum(tied) / len(tied)
    return found


def rank_metrics(features, labels, gallery, gallery_labels, similarity, own=None):
    """Means over the queries of rank_order, by lists of vectors and a table of similarities of the labels."""
    values = sorted({x for row in similarity for x in row}, reverse=True)
    of_queries = []
    for i, (q, y) in enumerate(zip(features, labels, strict=True)):
        entries = [j for j in range(len(gallery)) if own is None or j != own[i]]
        # single precision decides which similarities are equal; 1e-6 stands for that here
        scores = [
            round(
                math.fsum(a * b for a, b in zip(q, gallery[j], strict=True))
                / math.sqrt(math.fsum(a * a for a in q) * math.fsum(b * b for b in gallery[j])),
                6,
            )
            for j in entries
        ]
        ranks = [values.index(similarity[y][gallery_labels[j]]) for j in entries]
        of_queries.append(rank_order(scores, ranks, values))
    names = {name for of in of_queries for name in of}
    means = {}
    for name in names:
        known = [of[name] for of in of_queries if name in of]
        means[name] = math.fsum(known) / len(known)
    pairs = [x for name, x in means.items() if name.startswith("AUROC ")]
    return {"AUROC": math.fsum(pairs) / len(pairs), **means}


def auroc_by_class(inlier, outlier, labels, classes):
    """AUROC of all inliers against the outliers of each class, by counting; None of a class without outliers."""
    found = []
    for c in range(classes):
        of_class = [x for x, label in zip(outlier, labels, strict=True) if label == c]
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inlier for b in of_class]
        found.append(sum(pairs) / len(pairs) if pairs else None)
    return found


def ood_metrics(inlier, outlier):
    """AUROC, FPR95, AUPR-in and AUPR-out of two lists of scores, by counting; larger = more inlier-like."""
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inlier for b in outlier]
    fpr95 = fpr95_out = 1.0
    for threshold in sorted({*inlier, *outlier}):
        if sum(b <= threshold for b in outlier) / len(outlier) >= 0.95:
            fpr95_out = sum(a <= threshold for a in inlier) / len(inlier)
            break
    for threshold in sorted({*inlier, *outlier}, reverse=True):
        if sum(a >= threshold for a in inlier) / len(inlier) >= 0.95:
            fpr95 = sum(b >= threshold for b in outlier) / len(outlier)
            break

    def average_precision(positive, negative):
        area, before = 0.0, 0.0
        for threshold in sorted({*positive, *negative}, reverse=True):
            hits = sum(a >= threshold for a in positive)
            recall = hits / len(positive)
            area += (recall - before) * hits / (hits + sum(b >= threshold for b in negative))
            before = recall
        return area

    return {
        "AUROC": math.fsum(pairs) / len(pairs),
        "FPR95": fpr95,
        "FPR95-out": fpr95_out,
        "AUPR-in": average_precision(inlier, outlier),
        "AUPR-out": average_precision([-b for b in outlier], [-a for a in inlier]),
    }


def solve_and_log_det(matrix, vector):
    """matrix^-1 vector and log |matrix| of a positive definite matrix, by Gaussian elimination."""
    rows = [[*row, v] for row, v in zip(matrix, vector, strict=True)]
    n, log_det = len(rows), 0.0
    for i in range(n):
        log_det += math.log(rows[i][i])
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - math.fsum(rows[i][j] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return x, log_det


def _mean_and_scatter(rows):
    d = len(rows[0])
    mean = [math.fsum(r[i] for r in rows) / len(rows) for i in range(d)]
    scatter = [[math.fsum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) for j in range(d)] for i in range(d)]
    return mean, scatter


def gaussian_scores(train, labels, features, ridge=1e-6):
    """Largest log-density over one Gaussian a class, maximum likelihood plus ridge on the diagonal."""
    d, best = len(features[0]), [-math.inf] * len(features)
    for c in set(labels):
        rows = [x for x, y in zip(train, labels, strict=True) if y == c]
        mean, scatter = _mean_and_scatter(rows)
        cov = [[scatter[i][j] / len(rows) + (ridge if i == j else 0) for j in range(d)] for i in range(d)]
        for m, x in enumerate(features):
            delta = [a - b for a, b in zip(x, mean, strict=True)]
            solved, log_det = solve_and_log_det(cov, delta)
            distance = math.fsum(a * b for a, b in zip(delta, solved, strict=True))
            best[m] = max(best[m], -(distance + d * math.log(2 * math.pi) + log_det) / 2)
    return best


def mahalanobis_scores(train, labels, features, ridge=1e-6):
    """Minus the smallest squared distance to a class mean under the covariance around the class means."""
    d, means = len(features[0]), []
    cov = [[ridge if i == j else 0.0 for j in range(d)] for i in range(d)]
    for c in set(labels):
        mean, scatter = _mean_and_scatter([x for x, y in zip(train, labels, strict=True) if y == c])
        means.append(mean)
        cov = [[cov[i][j] + scatter[i][j] / len(train) for j in range(d)] for i in range(d)]
    scores = []
    for x in features:
        deltas = [[a - b for a, b in zip(x, mean, strict=True)] for mean in means]
        distances = [sum(a * b for a, b in zip(v, solve_and_log_det(cov, v)[0], strict=True)) for v in deltas]
        scores.append(-min(distances))
    return scores


def relative_mahalanobis_scores(train, labels, features, ridge=1e-6):
    """The squared distance to the mean of all, less the smallest to a class mean, each under its own covariance."""
    d, (mean, scatter) = len(features[0]), _mean_and_scatter(train)
    cov = [[scatter[i][j] / len(train) + (ridge if i == j else 0.0) for j in range(d)] for i in range(d)]
    background = []
    for x in features:
        delta = [a - b for a, b in zip(x, mean, strict=True)]
        background.append(sum(a * b for a, b in zip(delta, solve_and_log_det(cov, delta)[0], strict=True)))
    of_classes = mahalanobis_scores(train, labels, features, ridge)
    return [score + distance for score, distance in zip(of_classes, background, strict=True)]


def knn_scores(train, features, k):
    """Minus the distance to the k-th nearest training vector, all of unit length."""

    def unit(v):
        return [x / math.sqrt(math.fsum(a * a for a in v)) for x in v]

    train = [unit(v) for v in train]
    return [-sorted(math.dist(unit(x), v) for v in train)[k - 1] for x in features]


def nested_rank(groups, a, b):
    """The finest level at which two labels share a group; the number of levels where they share none, or b < 0."""
    if b < 0:
        return len(groups[a])
    for level, (x, y) in enumerate(zip(groups[a], groups[b], strict=True)):
        if x == y:
            return level
    return len(groups[a])


def wordnet_similarity(parents, a, b, measure):
    """By every way up, written out: path = 1 / (1 + shortest way over a shared ancestor); Wu-Palmer at the deepest."""

    def ways(node):
        above = parents.get(node, ())
        return [[node, *way] for p in above for way in ways(p)] if above else [[node]]

    shortest, depth = {}, {}
    for way_a in ways(a):
        for way_b in ways(b):
            for i, x in enumerate(way_a):
                for j, y in enumerate(way_b):
                    if x == y:
                        shortest[x] = min(shortest.get(x, math.inf), i + j)
    for shared in shortest:
        depth[shared] = max(len(way) for way in ways(shared))
    if measure == "path":
        return 1 / (1 + min(shortest.values()))
    deepest = max(depth.values())
    edges = min(shortest[x] for x in shortest if depth[x] == deepest)
    return 2 * deepest / (edges + 2 * deepest)


def alignment(x, y):
    """Mean squared distance of the rows of two lists of vectors."""
    return math.fsum(math.dist(a, b) ** 2 for a, b in zip(x, y, strict=True)) / len(x)


def uniformity(x):
    """Log of the mean of exp(-2 d^2) over the pairs of a list of vectors, each pair once."""
    potentials = [math.exp(-2 * math.dist(x[i], x[j]) ** 2) for i in range(len(x)) for j in range(i)]
    return math.log(math.fsum(potentials) / len(potentials))


def knn_accuracy(features, labels, gallery, gallery_labels, k, tau):
    """Share of the queries whose class has the largest sum of exp(cosine / tau) over the k nearest, the first ones of
    equally near; of equal sums the smallest class counts.
    """
    right = 0
    for x, y, places in zip(features, labels, nearest(features, gallery, k), strict=True):
        votes = {}
        for j in places:
            c = gallery_labels[j]
            votes[c] = votes.get(c, 0.0) + math.exp(_cosine(x, gallery[j]) / tau)
        right += max(sorted(votes), key=votes.get) == y
    return right / len(labels)


T_975 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
}  # Student's t at 0.975 by number of pairs, as tables have it


def paired_difference(a, b):
    """Mean of the differences of two lists, pair by pair, and the half width of its 95 % interval."""
    n = len(a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    return mean, T_975[n] * math.sqrt(variance) / math.sqrt(n)


def paired_p(a, b, steps=20000):
    """p of the two-sided paired t-test: 1 less the integral of Student's density from -t to t, by Simpson's rule."""
    n = len(a)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / n
    t = abs(mean) / math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    df = n - 1
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    density = [scale * (1 + (t * i / steps) ** 2 / df) ** (-(df + 1) / 2) for i in range(steps + 1)]
    weights = [1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1)]
    return 1 - 2 * t / steps / 3 * math.fsum(w * x for w, x in zip(weights, density, strict=True))


def holm_rejects(p, level):
    """Places of the p-values that Holm's procedure rejects: from the smallest on, until one is too large."""
    rejected, left = [], list(range(len(p)))
    while left:
        smallest = min(left, key=lambda i: p[i])
        if p[smallest] > level / len(left):
            break
        rejected.append(smallest)
        left.remove(smallest)
    return sorted(rejected)


def _cosine(a, b):
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))


def class_cosines(features, labels, classes):
    """Mean cosine over all pairs of an image of one class and one of another, for each two classes."""
    of = [[x for x, y in zip(features, labels, strict=True) if y == c] for c in range(classes)]
    return [[math.fsum(_cosine(x, y) for x in a for y in b) / (len(a) * len(b)) for b in of] for a in of]


def within_and_across(table, group_of):
    """Mean of a table over the pairs of two classes of one group, and of two groups."""
    within, across = [], []
    for i, a in enumerate(group_of):
        for j, b in enumerate(group_of):
            if i != j:
                (within if a == b else across).append(table[i][j])
    return math.fsum(within) / len(within), math.fsum(across) / len(across)


def nearest_in_group(vectors, group_of):
    """How many vectors have the nearest other one in their group, of those that are not alone in it."""
    near, of = 0, 0
    for i, group in enumerate(group_of):
        others = [j for j in range(len(vectors)) if j != i]
        if group in [group_of[j] for j in others]:
            of += 1
            near += group_of[min(others, key=lambda j: math.dist(vectors[i], vectors[j]))] == group
    return near, of


def distance_error(vectors, points):
    """Root of the squared differences of the distances of all pairs, over the root of the squared distances."""
    off, size = 0.0, 0.0
    for i in range(len(vectors)):
        for j in range(i):
            true = math.dist(vectors[i], vectors[j])
            off += (math.dist(points[i], points[j]) - true) ** 2
            size += true**2
    return math.sqrt(off / size)


def least_distance(points, onto, steps=3600):
    """The least sum of squared distances of a map to another, over turns in small steps, mirrored or not."""

    def about_its_middle(p):
        middle = [math.fsum(axis) / len(p) for axis in zip(*p, strict=True)]
        return [(x - middle[0], y - middle[1]) for x, y in p]

    points, onto, found = about_its_middle(points), about_its_middle(onto), []
    for step in range(steps):
        c, s = math.cos(2 * math.pi * step / steps), math.sin(2 * math.pi * step / steps)
        for sign in (1, -1):
            turned = [(c * x - s * sign * y, s * x + c * sign * y) for x, y in points]
            found.append(math.fsum(math.dist(a, b) ** 2 for a, b in zip(turned, onto, strict=True)))
    return min(found)


def nearest(queries, gallery, k):
    """For each query the places in the gallery of the k largest cosines, the largest first."""
    return [sorted(range(len(gallery)), key=lambda j: -_cosine(q, gallery[j]))[:k] for q in queries]


# ---- views of features -----------------------------------------------------------------------------------------------


def _splitmix(x):
    """The output function of SplitMix64 (Steele et al. 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def random_words(seed, epoch, row, count):
    """Random 64-bit words of a row in an epoch."""
    start = _splitmix(_splitmix(_splitmix(seed % 2**64) ^ epoch) ^ row)
    return [_splitmix((start + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, count + 1)]


def dropped_views(x, words, dropout, views):
    """Views of a row x: a number is 0 where its 16 bits of the words, from the lowest on, are below the probability."""
    found = []
    for v in range(views):
        view = []
        for j, value in enumerate(x):
            word, part = divmod(v * len(x) + j, 4)
            share = (words[word] >> (16 * part)) % 2**16
            view.append(0.0 if share < round(dropout * 2**16) else value / (1 - dropout))
        found.append(view)
    return found


def soft_targets(similarity, beta):
    """Rows of probabilities from a table of similarities; lists in, lists out."""
    found = []
    for row in similarity:
        weights = [math.exp(-beta * (1 - s)) for s in row]
        found.append([w / math.fsum(weights) for w in weights])
    return found


def smooth_targets(superclass, epsilon):
    """Rows of probabilities: epsilon over the other classes of a superclass, where there are any."""
    found = []
    for y, group in enumerate(superclass):
        siblings = [c for c, other in enumerate(superclass) if other == group and c != y]
        row = [epsilon / len(siblings) if c in siblings else 0.0 for c in range(len(superclass))]
        row[y] = 1 - epsilon if siblings else 1.0
        found.append(row)
    return found


def cross_entropy(logits, targets):
    """Mean over N rows of logits, each against its row of probabilities."""
    terms = [
        -math.fsum(p * (x - log_sum_exp(row)) for x, p in zip(row, target, strict=True))
        for row, target in zip(logits, targets, strict=True)
    ]
    return math.fsum(terms) / len(terms)


# ---- real values -----------------------------------------------------------------------------------------------------


def regression_scores(predicted, values):
    """Mean absolute error, and 1 minus the share of the squared deviations from the mean that is left."""
    n, mean = len(values), math.fsum(values) / len(values)
    left = math.fsum((p - y) ** 2 for p, y in zip(predicted, values, strict=True))
    mae = math.fsum(abs(p - y) for p, y in zip(predicted, values, strict=True)) / n
    return {"MAE": mae, "R2": 1 - left / math.fsum((y - mean) ** 2 for y in values)}


def knn_regression(features, gallery, gallery_values, k):
    """Mean value of the k nearest of the gallery."""
    found = [nearest([x], gallery, k)[0] for x in features]
    return [math.fsum(gallery_values[j] for j in places) / len(places) for places in found]


def _ridge(rows, values, penalty):
    """Weights and intercept of least squares with a penalty on the weights; columns need have no mean 0."""
    n, d = len(rows), len(rows[0])
    means = [math.fsum(row[i] for row in rows) / n for i in range(d)]
    mean = math.fsum(values) / n
    x = [[row[i] - means[i] for i in range(d)] for row in rows]
    gram = [[math.fsum(row[i] * row[j] for row in x) + penalty * (i == j) for j in range(d)] for i in range(d)]
    right = [math.fsum(row[i] * (y - mean) for row, y in zip(x, values, strict=True)) for i in range(d)]
    weights, _ = solve_and_log_det(gram, right)
    return weights, mean - math.fsum(w * m for w, m in zip(weights, means, strict=True))


def ridge_regression(features, gallery, gallery_values, penalties):
    """What ridge regression says, fitted to the gallery in standard deviations of each dimension, with the penalty of
    the least squared error of each entry by a fit to all others.
    """
    n, d = len(gallery), len(gallery[0])
    means = [math.fsum(row[i] for row in gallery) / n for i in range(d)]
    stds = [math.sqrt(math.fsum((row[i] - means[i]) ** 2 for row in gallery) / n) for i in range(d)]

    def scaled(rows):
        return [[(row[i] - means[i]) / stds[i] for i in range(d)] for row in rows]

    def predicted(row, weights, intercept):
        return intercept + math.fsum(w * x for w, x in zip(weights, row, strict=True))

    def error(penalty):
        rows, total = scaled(gallery), 0.0
        for i in range(n):
            others = rows[:i] + rows[i + 1 :], gallery_values[:i] + gallery_values[i + 1 :]
            total += (predicted(rows[i], *_ridge(*others, penalty)) - gallery_values[i]) ** 2
        return total

    fitted = _ridge(scaled(gallery), gallery_values, min(penalties, key=error))
    return [predicted(row, *fitted) for row in scaled(features)]


def value_consistency(features, values, gallery, gallery_values):
    """Mean of Spearman's rho of cosines and minus the distances; 0 of a query where either are all equal."""
    found = []
    for x, y in zip(features, values, strict=True):
        cosines, near = [_cosine(x, g) for g in gallery], [-abs(y - b) for b in gallery_values]
        constant = len({round(c, 12) for c in cosines}) == 1 or len({*near}) == 1
        found.append(0.0 if constant else spearman([round(c, 12) for c in cosines], near))
    return math.fsum(found) / len(found)


def color_change(before, after, width=32):
    """Share of the pixels (lists of three levels) that change color: of bins of `width` levels a channel, and of bins
    that begin half a bin earlier, the smaller share.
    """
    shares = []
    for shift in (0, width // 2):
        colors = [[tuple((level + shift) // width for level in pixel) for pixel in image] for image in (before, after)]
        kinds = {*colors[0], *colors[1]}
        moved = math.fsum(abs(colors[0].count(k) / len(before) - colors[1].count(k) / len(after)) for k in kinds)
        shares.append(moved / 2)
    return min(shares)


def disagreement(lists):
    """In percent, 100 minus the mean share of common entries (of all entries, each once) over pairs of lists."""
    shares = []
    for i in range(len(lists)):
        for j in range(i):
            common = [x for x in lists[i] if x in lists[j]]
            shares.append(len(common) / len({*lists[i], *lists[j]}))
    return 100 - 100 * sum(shares) / len(shares)
