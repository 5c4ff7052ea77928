"""Tasks that ask whether a folded cache can be used: what is found in it, and what is made of several facts.

Texts and questions are made from a seed, of words of our own; every text knows in which tokens its facts lie, so that
the number of chunks between fact and question is a coordinate of the answer. See docs/tasks.md.

``words`` ``base``
    what tasks are made of; what a task is.
``kinds/``
    one file per task.
``haystacks``
    what facts are hidden in.
``quizzes``
    :func:`~drift.running.tasks.quizzes.quiz`: texts of a given length, in tokens.
``scoring``
    what a text is worth as an answer.
``prefills``
    texts that begin alike are folded once, as far as they do.
``answering``
    one question in one lane: what is generated, and how likely the right answer is.
``examining``
    a quiz put to one lane after the other.
``taking``
    :func:`~drift.running.tasks.taking.take_quiz`: all questions in all lanes, with controls.
"""
